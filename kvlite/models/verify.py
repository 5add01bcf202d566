"""Verifies a loaded model by a dry run: only models whose attention kvlite really holds are admitted.

Some families ignore transformers' attention interface without an error. After loading, a few tokens are fed in chunks:
every attention layer must have written its slots, and the logits must equal eager attention. Then the same tokens
are fed at later positions, and the stored keys tell how each layer rotates; no family is trusted by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.layer import Layer
from kvlite.cache.rotation import Rotation
from kvlite.errors import BrokenModel, UnsupportedModel, UsageError, is_out_of_memory
from kvlite.models.attention_interface import ATTENTION
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import PROBE_TOKENS, dry_cache, feed, probe_ids
from kvlite.record.verdicts import RotationFacts

SHIFT = 29
LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
KEY_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest relative RMSE against the reference, per dtype of computation."""


def admit(loaded: LoadedModel) -> LoadedModel:
    """Check the model and learn its rotations.

    Raises UnsupportedModel, naming the family and what is wrong, BrokenModel where the model itself gives no numbers,
    and UsageError where float16 is too narrow.
    """
    ids = probe_ids(loaded, PROBE_TOKENS)
    cache = dry_cache(loaded, PROBE_TOKENS)
    try:
        loaded.model.set_attn_implementation("eager")
        with torch.inference_mode():
            expected = loaded.model(input_ids=ids, use_cache=False).logits
        loaded.model.set_attn_implementation(ATTENTION)
        logits = feed(loaded, cache, ids)
    except (RuntimeError, KeyError, AttributeError, TypeError, IndexError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        why = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise _refusal(loaded, f"the dry run failed: {why}") from error
    silent = [index for index, layer in cache.layers.items() if not bool(_keys(layer).any())]
    if silent:
        raise _refusal(loaded, f"{len(silent)} of {len(cache.layers)} attention layers bypass the attention interface")
    if expected.dtype == torch.float16 and not bool(expected.isfinite().all()):
        raise UsageError(
            "the model's numbers are not finite in float16; give --dtype float32, or bfloat16 on a newer GPU"
        )
    if not bool(expected.isfinite().all()):
        raise BrokenModel("the model's own numbers are not finite: weights or sizes are damaged; download it again")
    off = relative_error(logits, expected)
    if not off <= LOGIT_TOLERANCE[loaded.compute_dtype] * _slack(loaded):
        raise _refusal(loaded, f"its logits differ from eager attention by {off:.1%}")
    return replace(loaded, rotations=_learn_rotations(loaded, cache, ids))


def _slack(loaded: LoadedModel) -> int:
    """The factor on tolerances: activations in 8 bits turn a last bit of difference into one of their steps."""
    return 2 if loaded.shape.is_quantised else 1


def _refusal(loaded: LoadedModel, why: str) -> UnsupportedModel:
    return UnsupportedModel(f"{loaded.shape.family} models cannot run inside a KV budget: {why}; choose another model")


def _learn_rotations(loaded: LoadedModel, cache: SlotCache, ids: Tensor) -> dict[int, Rotation | None] | None:
    """Each layer's Rotation, None for a layer without positions; None altogether where keys cannot be moved."""
    window = loaded.window
    if loaded.shape.positions == "learned":
        return None
    if window is not None and window < PROBE_TOKENS + SHIFT:
        return None
    before = {index: _keys(layer).clone() for index, layer in cache.layers.items()}
    feed(loaded, cache, ids, shift=SHIFT)
    frequencies = _frequencies(loaded)
    rotations: dict[int, Rotation | None] = {}
    for index, layer in cache.layers.items():
        after, tolerance = _keys(layer), KEY_TOLERANCE[loaded.compute_dtype] * _slack(loaded)
        if relative_error(before[index], after) <= KEY_TOLERANCE[torch.float32]:
            rotations[index] = None
            continue
        candidates = [
            Rotation(frequency * direction, start, interleaved)
            for frequency in frequencies
            for direction in (1, -1)  # nanochat turns the other way
            for start in {0, layer.shape.k_dim - 2 * len(frequency)}
            if start >= 0
            for interleaved in (False, True)
        ]
        errors = [relative_error(_turned(before[index], candidate), after) for candidate in candidates]
        if not errors or min(errors) > tolerance:
            return None
        rotations[index] = candidates[errors.index(min(errors))]
    return rotations


def describe_rotations(loaded: LoadedModel) -> dict[int, RotationFacts | None] | None:
    """The model's rotations without tensors, by the tables of frequencies that it has."""
    if loaded.rotations is None:
        return None
    tables = [
        (table * direction, i, direction) for i, table in enumerate(_frequencies(loaded)) for direction in (1, -1)
    ]
    return {
        layer: None
        if rotation is None
        else next(
            (i, direction, rotation.start, rotation.interleaved)
            for table, i, direction in tables
            if torch.equal(table, rotation.inv_freq)
        )
        for layer, rotation in loaded.rotations.items()
    }


def rotations_as_described(
    loaded: LoadedModel, described: Mapping[int, RotationFacts | None]
) -> dict[int, Rotation | None]:
    """The rotations that `describe_rotations` told of. Raises IndexError where the model has no such table."""
    tables = _frequencies(loaded)
    return {
        layer: None if facts is None else Rotation(tables[facts[0]] * facts[1], facts[2], facts[3])
        for layer, facts in described.items()
    }


def _frequencies(loaded: LoadedModel) -> list[Tensor]:
    """Every distinct table of rotary frequencies in the model, fp32 [R / 2]."""
    found: list[Tensor] = []
    for name, buffer in loaded.model.named_buffers():
        table = buffer.float()
        if name.endswith("inv_freq") and table.dim() == 1 and not any(torch.equal(table, known) for known in found):
            found.append(table)
    return found


def _turned(keys: Tensor, rotation: Rotation) -> Tensor:
    turned = keys.clone()
    rotation.rotate_(turned, torch.full(keys.shape[:-1], SHIFT, device=keys.device))
    return turned


def _keys(layer: Layer) -> Tensor:
    """The probe's keys [H_KV, N, D]; slot i holds token i while nothing is evicted."""
    (part,) = layer.parts
    keys = part.slots.k
    assert isinstance(keys, Tensor)
    return keys[0, :, : min(part.num_slots, PROBE_TOKENS)]


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Relative RMSE, NaN where either is not finite."""
    value, expected = value.cpu().double(), expected.cpu().double()  # MPS has no float64
    difference = (value - expected).square().mean().sqrt()
    return float(difference / expected.square().mean().sqrt().clamp(min=1e-12))
