"""Measures the need of each KV head for slots, by replay, through the attention seam that answers run through.

A text is fed, then `Repeat the previous context exactly.` and the text again, as KVzip does
(https://arxiv.org/abs/2505.23416): a key is needed as much as the largest probability that a query of the repetition
gave it, in any query head of its group. One threshold over the keys of all heads then keeps a share of them, and a head
needs what it keeps. Departures: the text is repeated in one piece, and what is taken from it is not which tokens stay
but how many of each head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

import torch
from torch import Tensor

from kvlite.cache.step import Step
from kvlite.errors import NumericError, UsageError
from kvlite.memory.shape import LayerShape
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import probe_ids
from kvlite.profiles.profile import HeadProfile, Needs, Point
from kvlite_kernels.reference import Geometry, Segment, attend, merge
from kvlite_kernels.statistic import probabilities

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75)
MOST_TOKENS = 640
"""Tokens of a text that are measured, at most."""
SINKS = 4
_LEAST_TOKENS = 32
_TILE = 1 << 22  # logits held at once: 16 MiB in fp32
_INSTRUCTION = "\n\nRepeat the previous context exactly.\n\n"

Progress = Callable[[int, int], None]


class _Layer:
    """A layer that keeps all keys and values, and notes the largest probability of the first `count` ones."""

    def __init__(self, shape: LayerShape) -> None:
        self.shape = shape
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.count = 0
        self.peak: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """Attend q [1, H_Q, T, D] over all keys so far, in tiles of queries."""
        self.k = k = k if self.k is None else torch.cat([self.k, k], 2)
        self.v = v = v if self.v is None else torch.cat([self.v, v], 2)
        keys = Segment(k, v, torch.arange(k.shape[2], device=k.device)[None, None])
        q_pos = step.pos[:, -q.shape[2] :]
        outs, tile = [], max(1, _TILE // (q.shape[1] * k.shape[2]))
        for queries, pos in zip(q.split(tile, 2), q_pos.split(tile, 1), strict=True):
            partial = attend(queries, pos, keys, geometry)
            out, lse = merge([partial.out], [partial.lse], geometry.sink_logits)
            outs.append(out.to(q.dtype))
            if self.count:
                given = probabilities(partial.logits[..., : self.count], lse[..., None])
                peak = given.unflatten(1, (k.shape[1], -1)).amax((0, 2, 3))  # [H_KV, count]
                self.peak = peak if self.peak is None else torch.maximum(self.peak, peak)
        return torch.cat(outs, 2)


class _Reading:
    """The layers of one text, in the place of a cache."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.layers = {index: _Layer(shape) for index, shape in enumerate(loaded.shape.layers) if shape.kv_heads}

    def end(self, step: Step) -> None:
        """Nothing is evicted."""

    def peaks(self, full: Sequence[int]) -> list[Tensor]:
        """The need for each key of layers `full`, [H_KV, n] each; the layers' tensors are let go."""
        found = [self.layers[index].peak for index in full]
        self.layers.clear()
        return [peak.cpu() for peak in found if peak is not None]


def fingerprint(loaded: LoadedModel) -> str:
    """Name the weights by their layout and their vectors (norms and biases), which every way of quantising keeps.

    To be taken before modules are fused, which changes some of them.
    """
    vectors = [parameter.detach().flatten() for parameter in loaded.model.parameters() if parameter.dim() == 1]
    if len({value for vector in vectors[:8] for value in vector[:8].tolist()}) < 4:  # norms that were never trained
        embedding = loaded.model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        vectors.append(embedding[:16].detach().flatten())
    numbers = torch.cat([vector.to(torch.bfloat16) for vector in vectors]).cpu()
    layout = repr([(layer.kind, layer.kv_heads, layer.k_dim) for layer in loaded.shape.layers])
    return sha256(layout.encode() + numbers.view(torch.uint8).numpy().tobytes()).hexdigest()[:24]


def measure_needs(loaded: LoadedModel, texts: Sequence[str], tell: Progress = lambda done, of: None) -> HeadProfile:
    """The profile of a loaded model, the mean over `texts`; `tell` is called with the texts read and their number.

    Raises UsageError where the model's window is too small or no layer sees everything, NumericError where it computes
    no numbers.
    """
    full = [index for index, layer in enumerate(loaded.shape.layers) if layer.kind == "full"]
    if not full:
        raise UsageError("no layer of this model sees a whole text, so all heads need the same: nothing to measure")
    totals: list[list[Tensor]] = []
    tokens = 0
    for number, text in enumerate(texts):
        tell(number, len(texts))
        peaks = read_twice(loaded, text, full)
        tokens += peaks[0].shape[-1]
        totals.append(kept_by_head(peaks))
    points = []
    for number, share in enumerate(SHARES):
        mean = torch.stack([found[number] for found in totals]).mean(0)
        points.append(Point(share=share, heads=_by_layer(loaded, full, mean)))
    return HeadProfile(fingerprint=loaded.fingerprint, tokens=tokens, points=tuple(points))


@torch.inference_mode()
def read_twice(loaded: LoadedModel, text: str, full: Sequence[int]) -> list[Tensor]:
    """The need for each key of a text to repeat it: of each of the layers `full` fp32 [H_KV, n]."""
    first, again = _ids(loaded, text)
    reading = _Reading(loaded)
    if loaded.state is not None:
        loaded.state.reset()
    _feed(loaded, reading, first, 0)
    for index in full:
        reading.layers[index].count = first.shape[1]
    logits = _feed(loaded, reading, again, first.shape[1])
    if loaded.state is not None:
        loaded.state.reset()
    if not logits.isfinite().all():
        raise NumericError("the model computed no numbers; give --dtype float32 or bfloat16")
    return reading.peaks(full)


def kept_by_head(peaks: Sequence[Tensor]) -> list[Tensor]:
    """For each of SHARES the share of its keys that each head keeps under one threshold, heads one after another."""
    needed = torch.cat(list(peaks))  # [heads, n]
    heads, count = needed.shape
    needed[:, :SINKS] = torch.inf
    kept = []
    for share in SHARES:
        most = max(heads * min(SINKS, count), round(share * heads * count))
        threshold = needed.flatten().topk(most).values[-1]
        kept.append((needed >= threshold).float().mean(-1))
    return kept


def _by_layer(loaded: LoadedModel, full: Sequence[int], needs: Tensor) -> Needs:
    """Needs [heads] as a row per layer, rounded to what a text of such a length can tell."""
    counts = [loaded.shape.layers[index].kv_heads for index in full]
    rows = dict(zip(full, needs.split(counts), strict=True))
    return tuple(
        tuple(round(need, 4) for need in rows[index].tolist()) if index in rows else ()
        for index in range(len(loaded.shape.layers))
    )


def _asking_ids(loaded: LoadedModel) -> tuple[int, ...]:
    """The ids that ask to repeat what was said; none for a model that nobody talks to, in a test."""
    if loaded.tokenizer is None:
        return ()
    return tuple(loaded.tokenizer.encode(_INSTRUCTION, add_special_tokens=False))


def _ids(loaded: LoadedModel, text: str) -> tuple[Tensor, Tensor]:
    """A text's ids [1, n], and those that ask to repeat it and do: as many as the window takes."""
    if loaded.tokenizer is None:  # a model that nobody talks to, in a test
        first, ask = probe_ids(loaded, 2 * _LEAST_TOKENS)[0].tolist(), [0]
        plain = first
    else:
        encode = loaded.tokenizer.encode
        ask, plain = [*_asking_ids(loaded)], encode(text, add_special_tokens=False)
        first = encode(text)
    room = (loaded.window or 2**31) - len(ask)
    count = min(MOST_TOKENS, len(plain), (room - (len(first) - len(plain))) // 2)
    if count < _LEAST_TOKENS:
        raise UsageError(f"the model's window of {loaded.window} tokens is too short to measure what its heads need")
    first = first[: count + len(first) - len(plain)]
    return (
        torch.tensor([first], device=loaded.device),
        torch.tensor([ask + plain[:count]], device=loaded.device),
    )


def _feed(loaded: LoadedModel, reading: _Reading, ids: Tensor, start: int) -> Tensor:
    pos = torch.arange(start, start + ids.shape[1], dtype=torch.int32, device=ids.device)[None]
    return loaded.forward(ids, reading, Step(slice(0, 1), pos, pos, (ids.shape[1],), None, None, {}))
