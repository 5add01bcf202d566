"""The checks after loading: the gate and the patches, made once for a model and remembered.

A start that knows their outcome applies it and runs none of them. Knows nothing of files: `record.verdicts` keeps them.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from kvlite.cache.rotation import Rotation
from kvlite.catalog.model_files import ModelFiles
from kvlite.memory.shape import ModelShape
from kvlite.models.attention_interface import ATTENTION
from kvlite.models.fusing import fuse, fuse_as_before, multiply_packed
from kvlite.models.kv_quant_check import QuantEffect
from kvlite.models.loaded import LoadedModel
from kvlite.models.verify import admit, describe_rotations, rotations_as_described
from kvlite.options import ModelOptions
from kvlite.record.findings import Circumstances
from kvlite.record.measure import versions
from kvlite.record.verdicts import Verdict, Verdicts, code_stamp
from kvlite_kernels.fused_ops import FusedOps


def circumstances(
    files: ModelFiles, options: ModelOptions, shape: ModelShape, device: torch.device, ops: FusedOps
) -> Circumstances | None:
    """All that the checks depend on; None where that is more than can be told: code of the model's own.

    Raises BrokenModel where a file is unreadable.
    """
    if options.trust_remote_code:
        return None
    return {
        "model": files.identity(),
        "dtype": shape.dtype,
        "positions": str(shape.max_positions),
        "quant": options.quant,
        "kernels": f"{ops.name}{', 4-bit products' * (ops.most_four_bit_rows(torch.float16) > 0)}",
        "fuse": str(options.fuse),
        "device": _device_name(device),
        "code": code_stamp(),
        **versions(),
    }


def check(loaded: LoadedModel, ops: FusedOps, *, fuses: bool) -> LoadedModel:
    """Admit a model that was just loaded, and fuse it. Raises UnsupportedModel."""
    start = time.perf_counter()
    loaded = admit(loaded)
    admitted = time.perf_counter()
    loaded = multiply_packed(loaded, ops)
    if fuses:
        loaded = fuse(loaded, ops)
    return replace(loaded, stages={"gate": admitted - start, "fusing": time.perf_counter() - admitted})


def check_once(
    loaded: LoadedModel, ops: FusedOps, store: Verdicts, about: Circumstances, *, fuses: bool
) -> LoadedModel:
    """As `check`, unless `store` knows what came of it under these circumstances, which is then as it was."""
    known = store.find(about)
    as_known = None if known is None else _as_known(loaded, known, ops)
    if as_known is not None:
        return replace(as_known, about=about)
    loaded = check(loaded, ops, fuses=fuses)
    store.keep(about, verdict_of(loaded, {}))
    return replace(loaded, about=about)


def verdict_of(loaded: LoadedModel, effects: Mapping[str, QuantEffect]) -> Verdict:
    """Facts known of a checked model, with the `effects` of slot formats on it."""
    known = {name: (effect.nats, effect.agreement) for name, effect in effects.items()}
    found = {**loaded.effects, **known}
    return Verdict(describe_rotations(loaded), loaded.fused, loaded.refused, found, loaded.remembered)


def _as_known(loaded: LoadedModel, known: Verdict, ops: FusedOps) -> LoadedModel | None:
    """The model as an earlier start found it; None where that was another one: the file is damaged."""
    start = time.perf_counter()
    try:
        rotations = _rotations(loaded, known)
    except LookupError:
        return None
    loaded.model.set_attn_implementation(ATTENTION)
    loaded = fuse_as_before(loaded, known.fused, known.refused, ops)
    stages = {"gate": 0.0, "fusing": time.perf_counter() - start}
    return replace(loaded, rotations=rotations, effects=known.effects, remembered=known.when, stages=stages)


def _rotations(loaded: LoadedModel, verdict: Verdict) -> dict[int, Rotation | None] | None:
    """The rotations of a verdict. Raises LookupError where they are those of another model."""
    if verdict.rotations is None:
        return None
    if verdict.rotations.keys() != {index for index, layer in enumerate(loaded.shape.layers) if layer.kv_heads}:
        raise LookupError("layers of another model")
    return rotations_as_described(loaded, verdict.rotations)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} {platform.machine()}"
