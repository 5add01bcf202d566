"""Feeding a cache without a model: random queries, keys and values for every layer of every conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.group import empty_vectors
from kvlite.cache.layer import Layer
from kvlite.cache.part import Part
from kvlite.cache.policy import Candidates, Policy
from kvlite.cache.rotation import Rotation
from kvlite.memory.budget import Budget
from kvlite.memory.format import FORMATS
from kvlite.memory.plan import CachePlan, plan_cache
from kvlite.memory.shape import LayerShape, ModelShape
from kvlite_kernels.backend import TORCH
from kvlite_kernels.reference import Geometry
from kvlite_kernels.slots import Slots

Span = tuple[int, int]
Needs = Sequence[Sequence[float]]
T = TypeVar("T")
CPU = torch.device("cpu")


def attention_layer(kv_heads: int = 2, dim: int = 8, window: int | None = None, v_dim: int | None = None) -> LayerShape:
    return LayerShape("full" if window is None else "sliding", kv_heads, dim, v_dim or dim, window)


def model_shape(*layers: LayerShape, max_positions: int | None = None) -> ModelShape:
    return ModelShape(
        family="test",
        layers=layers,
        hidden=16,
        query_heads=max(layer.kv_heads for layer in layers),
        vocab=32,
        intermediate=16,
        max_positions=max_positions,
        positions="rotary",
        rope_type="default",
        dtype="float32",
    )


def make_plan(
    shape: ModelShape,
    budget: str,
    policy: Policy,
    rows: int = 1,
    dtype: str = "float32",
    protected_slots: int = 0,
    needs: Needs | None = None,
) -> CachePlan:
    """The plan of a cache under `policy`, whose heads have slots by their `needs`: per layer, per KV head."""
    shares = None if needs is None else lambda slots: needs
    spec = replace(policy.cache_spec(FORMATS[dtype], head_shares=shares), protected_slots=protected_slots)
    return plan_cache(shape, Budget.parse(budget), spec, rows=rows, free_bytes=None)


def make_cache(
    shape: ModelShape,
    slots: int,
    policy: Policy,
    rows: int = 1,
    dtype: str = "float32",
    needs: Needs | None = None,
) -> SlotCache:
    least = 0 if needs is None else policy.min_slots()
    plan = make_plan(shape, f"{slots}tok", policy, rows, dtype, least, needs)
    return SlotCache(shape, plan, policy, FORMATS[dtype], CPU)


@dataclass(frozen=True)
class Stream:
    """What one layer computes for a conversation, by position: q [H_Q, N, D], k [H_KV, N, D], v [H_KV, N, D_V]."""

    q: Tensor
    k: Tensor
    v: Tensor


def random_streams(shape: ModelShape, group: int, length: int, seed: int) -> list[Stream]:
    """One stream a layer. Queries are large, so that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return [
        Stream(
            2 * normal(layer.kv_heads * group, length, layer.k_dim),
            normal(layer.kv_heads, length, layer.k_dim),
            normal(layer.kv_heads, length, layer.v_dim),
        )
        for layer in shape.layers
    ]


def as_stored(stream: Stream, stored: str) -> Stream:
    """The same with each key and value as a slot gives it back."""
    slots = slots_of(stored, stream.k[None], stream.v[None])
    held = Candidates(slots.pos, slots.pos, None, ((slots.k, slots.v),))
    return Stream(stream.q, held.keys[0, :, :-1], held.values[0, :, :-1])


def slots_of(stored: str, k: Tensor, v: Tensor) -> Slots:
    """Slots that hold keys [B, H_KV, N, D] and values [B, H_KV, N, D_V]."""
    *heads, length, _ = k.shape
    layer = attention_layer(heads[-1], k.shape[-1], v_dim=v.shape[-1])
    empty = empty_vectors((*heads, length + 1), layer, FORMATS[stored], CPU)
    slots = Slots.empty(*empty, has_statistic=False)
    TORCH.write(slots, slice(0, length), k, v)
    return slots


def geometry(layer: LayerShape) -> Geometry:
    return Geometry(layer.k_dim**-0.5, layer.window)


@dataclass
class Driver:
    """Feeds conversation i, whose streams are `streams[i]`, into row i of a cache, as the engine does.

    `seen` and `rot` are what the engine counts per row. Layers of `rotations` get their queries and keys rotated.
    Padding carries garbage, which nothing may notice.
    """

    cache: SlotCache
    streams: Sequence[list[Stream]]
    pins: Sequence[Sequence[Span]] = ()
    rotations: Mapping[int, Rotation] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)
    rot: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = [0] * self.cache.plan.rows
        self.rot = [0] * self.cache.plan.rows
        for index, rotation in self.rotations.items():
            self.cache.layers[index].rotation = rotation

    def rerotate(self, row: int) -> None:
        self.rot[row] = self.cache.rerotate(row)

    def feed(self, counts: Sequence[int], first: int = 0) -> list[list[Tensor]]:
        """Feed `counts[i]` tokens to row `first + i` -> per layer and row, out [H_Q, count, D_V]."""
        rows = range(first, first + len(counts))
        width = max(1, *counts)
        pos, rot = (self._numbered(numbers, counts, rows, width) for numbers in (self.seen, self.rot))
        pins = self._pins(rows)
        step = self.cache.begin(slice(rows.start, rows.stop), pos, rot, counts, pins)
        outs = []
        for index, layer in self.cache.layers.items():
            q, k, v = (self._batch(index, name, counts, rows, width) for name in ("q", "k", "v"))
            out = layer.attend(q, k, v, step, geometry(layer.shape))
            outs.append([out[i, :, width - count :] for i, count in enumerate(counts)])
        self.cache.end(step)
        for row, count in zip(rows, counts, strict=True):
            self.seen[row] += count
            self.rot[row] += count
        return outs

    def _numbered(self, starts: list[int], counts: Sequence[int], rows: range, width: int) -> Tensor:
        lines = [[-1] * (width - n) + list(range(starts[r], starts[r] + n)) for r, n in zip(rows, counts, strict=True)]
        return torch.tensor(lines, dtype=torch.int32)

    def _batch(self, layer: int, name: str, counts: Sequence[int], rows: range, width: int) -> Tensor:
        lines = []
        for row, count in zip(rows, counts, strict=True):
            stream: Tensor = getattr(self.streams[row][layer], name)
            garbage = torch.full((stream.shape[0], width - count, stream.shape[2]), 1e3)
            new = stream[:, self.seen[row] : self.seen[row] + count]
            if name != "v" and layer in self.rotations:
                new = rotated(new, torch.arange(count) + self.rot[row], self.rotations[layer])
            lines.append(torch.cat([garbage, new], 1))
        return torch.stack(lines)

    def _pins(self, rows: range) -> Tensor | None:
        spans = [list(self.pins[row]) if self.pins else [] for row in rows]
        most = max(len(held) for held in spans)
        padded = [[*held, *[(0, 0)] * (most - len(held))] for held in spans]
        return torch.tensor(padded, dtype=torch.int32) if most else None


def rotated(x: Tensor, at: Tensor, rotation: Rotation) -> Tensor:
    """`x` [..., N, D] rotated by `at` [..., N] positions: pairs of channels as complex numbers, in float64."""
    half = len(rotation.inv_freq)
    channels = torch.arange(2 * half) + rotation.start
    real, imaginary = (channels[0::2], channels[1::2]) if rotation.interleaved else (channels[:half], channels[half:])
    turn = torch.polar(torch.ones(()).double(), at[..., None].double() * rotation.inv_freq.double())
    pairs = torch.complex(x[..., real].double(), x[..., imaginary].double()) * turn
    turned = x.double().clone()
    turned[..., real], turned[..., imaginary] = pairs.real, pairs.imag
    return turned.to(x.dtype)


def positions(held: Layer | Part, row: int = 0) -> list[set[int]]:
    """The positions that each KV head of a row holds."""
    if isinstance(held, Layer):
        return in_order(held, [positions(part, row) for part in held.parts])
    return [
        {position for position in head if position >= 0} for head in held.slots.pos[row, :, : held.num_slots].tolist()
    ]


def statistics(held: Layer | Part, row: int = 0) -> list[dict[int, float]]:
    """The statistic of each held position, per KV head of a row; empty where the policy keeps none."""
    if isinstance(held, Layer):
        return in_order(held, [statistics(part, row) for part in held.parts])
    if held.slots.statistic is None:
        return [{} for _ in range(held.shape.kv_heads)]
    both = (
        held.slots.pos[row, :, : held.num_slots].tolist(),
        held.slots.statistic[row, :, : held.num_slots].tolist(),
    )
    return [{p: known for p, known in zip(*head, strict=True) if p >= 0} for head in zip(*both, strict=True)]


def in_order(layer: Layer, of_parts: Sequence[Sequence[T]]) -> list[T]:
    """Facts known of each KV head of a layer, in the order of heads."""
    known = {
        head: each
        for part, heads in zip(layer.parts, of_parts, strict=True)
        for head, each in zip(part.heads.numbers, heads, strict=True)
    }
    return [known[head] for head in sorted(known)]
