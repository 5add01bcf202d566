"""The seam between a cache and what computes on its slots: plain torch, which runs everywhere, or Triton.

Torch is the reference that Triton is held against. A cache never asks which of them it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvlite_kernels import half_attention
from kvlite_kernels.echo import heard
from kvlite_kernels.eviction import Protection, choose, priority
from kvlite_kernels.fused_attention import attend_fused, suits
from kvlite_kernels.lowbit import Packed, hadamard, quantise
from kvlite_kernels.reference import (
    TILE_ELEMENTS,
    Geometry,
    Segment,
    attend_beside,
    attend_segments,
    is_plain,
    multiplies_halves,
)
from kvlite_kernels.slots import Slots, Vectors, move, put
from kvlite_kernels.statistic import Observation


class KernelsUnavailable(ValueError):
    """The kernels that were asked for do not run here; the message says why."""


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """Sizes of one layer; `keys` are its slots and the one in which a token waits."""

    query_heads: int
    kv_heads: int
    keys: int
    k_dim: int
    v_dim: int

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.query_heads // self.kv_heads


class Backend:
    """Attends over slots, writes tokens into them and evicts, whatever slots hold: numbers or codes.

    In plain torch, whose methods kernels override.
    """

    name = "torch"
    scratch_bytes = 0
    """Device memory that it allocated once, beside the slots."""

    def encode(self, slots: Slots, k: Vectors, v: Vectors) -> tuple[Vectors, Vectors]:
        """Keys [n, H_KV, T, D] and values [..., D_V] as `slots` hold them; what is so already stays."""
        keys, values = (
            self._coded(held, new) if isinstance(held, Packed) else new.to(held.dtype)
            for held, new in ((slots.k, k), (slots.v, v))
        )
        return keys, values

    def write(self, slots: Slots, index: Tensor | slice, k: Vectors, v: Vectors) -> None:
        """Put keys and values, encoded or not, into the slots `index`, as `Slots.write` takes them."""
        where = index if isinstance(index, slice) else (index + slots.starts).flatten()
        for held, new in ((slots.k, k), (slots.v, v)):
            if isinstance(held, Packed):
                coded = self._coded(held, new)
                put(held.codes, 2, where, coded.codes)
                put(held.scale, 2, where, coded.scale)
            else:
                assert isinstance(new, Tensor)
                put(held, 2, where, new)

    def attend(
        self, q: Tensor, q_pos: Tensor, segments: list[Segment], geometry: Geometry, observation: Observation | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend q [n, H_Q, T, D] at `q_pos` int [n, T] over slots and, unless they are among these, the new tokens.

        Returns out [n, H_Q, T, D_V] in the dtype of q and the statistic of the new tokens [n, H_KV, T]. That of the
        slots is updated in place: what the observation retains of it, plus what they received.
        """
        held = segments[0]
        if len(segments) == 1 and half_attention.suits_one(q, segments, geometry, observation):
            return half_attention.attend_one(q, segments, geometry), None
        is_quantised = isinstance(held.k, Packed)
        query = hadamard(q) if is_quantised else q
        attend = attend_fused if suits(query, segments, geometry, observation) else attend_segments
        out, received = attend(query, q_pos, segments, geometry, observation)
        if observation is not None and held.statistic is not None:
            observation.add_to(held.statistic, received[0])
        if is_quantised:
            out = hadamard(out)
        return out if out.dtype is q.dtype else out.to(q.dtype), received[1] if len(received) > 1 else None

    def attend_in_turn(
        self,
        q: Tensor,
        q_pos: Tensor,
        segments: Sequence[Segment],
        geometry: Geometry,
        observation: Observation | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """As `attend` of one query after another, of query i over `segments[i]`, which are beginnings of the last.

        Returns out [n, H_Q, T, D_V] and for each query the statistic that it adds to its keys [n, H_KV, N]; the slots'
        own stays. To the bit what `attend` gives: each product is of one query, and only the widening is shared.
        """
        if half_attention.suits_one(q[:, :, :1], segments[-1:], geometry, observation):
            asked = enumerate(segments)
            outs = [half_attention.attend_one(q[:, :, at : at + 1], [segment], geometry) for at, segment in asked]
            return torch.cat(outs, 2), []
        k, v, dtype = segments[-1].k, segments[-1].v, torch.promote_types(q.dtype, torch.float32)
        is_quantised = isinstance(k, Packed)
        if not multiplies_halves(q, segments[-1]) and max(k.shape.numel(), v.shape.numel()) <= TILE_ELEMENTS:
            k, v = k.to(dtype), v.to(dtype)
        outs, shares = [], []
        for number, segment in enumerate(segments):
            here, keys = slice(number, number + 1), segment.pos.shape[-1]
            seen = replace(segment, k=k[..., :keys, :], v=v[..., :keys, :])
            query = hadamard(q[:, :, here]) if is_quantised else q[:, :, here]
            out, received = attend_segments(query, q_pos[:, here], [seen], geometry, observation)
            outs.append((hadamard(out) if is_quantised else out).to(q.dtype))
            shares += received
        return torch.cat(outs, 2), shares

    def heard(
        self, q: Tensor, q_pos: Tensor, segments: list[Segment], geometry: Geometry, observation: Observation
    ) -> Tensor:
        """The mass that keys of the last segment receive from q [n, H_Q, T, D] at `q_pos` int [n, T]: [n, H_KV, N].

        The queries attend over all segments, and all that positions let them see.
        """
        return heard(hadamard(q) if isinstance(segments[0].k, Packed) else q, q_pos, segments, geometry, observation)

    def go_together(self, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None) -> bool:
        """True where one query's attention over slots of different KV heads is less work at once than one by one."""
        return all(is_plain(segment, geometry, observation) for segment in segments)

    def attend_beside(
        self, q: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None
    ) -> Tensor:
        """As `attend`, of one query over slots of different KV heads, in their order, where these `go_together`."""
        if half_attention.suits_one(q, segments, geometry, observation):
            return half_attention.attend_one(q, segments, geometry)
        is_quantised = isinstance(segments[0].k, Packed)
        out, received = attend_beside(hadamard(q) if is_quantised else q, segments, geometry, observation)
        for segment, total in zip(segments, received, strict=False):
            if observation is not None and segment.statistic is not None:
                observation.add_to(segment.statistic, total)
        return (hadamard(out) if is_quantised else out).to(q.dtype)

    def evict(self, slots: Slots, score: Tensor, next_pos: Tensor, protection: Protection) -> None:
        """Move each token that waits in the discard slot over the slot that goes first; padding is dropped.

        `score` fp32 [..., n, H_KV, S + 1]; `next_pos` int [n, 1, 1] is the position that comes next in each row.
        """
        index = choose(priority(score, slots.pos, next_pos, protection), slots.pos, slots.num_slots)
        waiting, where = (slots.starts + slots.num_slots).flatten(), (slots.starts + index).flatten()
        for _, held in slots.tensors():
            move(held, slots.starts.dim() - 1, waiting, where)

    def quantise(self, x: Tensor, bits: int, group: int) -> Packed:
        """Rotated vectors as codes, see `lowbit.quantise`."""
        return quantise(x, bits, group)

    def _coded(self, held: Packed, new: Vectors) -> Packed:
        return new if isinstance(new, Packed) else self.quantise(hadamard(new), held.bits, held.group)


TORCH = Backend()
