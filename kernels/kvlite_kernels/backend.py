"""The seam between a cache and what computes on its slots: plain torch, which runs everywhere, or Triton.

Torch is the reference that Triton is held against. A cache never asks which of them it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kvlite_kernels.eviction import Protection, choose, priority
from kvlite_kernels.lowbit import Packed, hadamard, quantise
from kvlite_kernels.reference import Geometry, Segment, attend_segments
from kvlite_kernels.slots import Slots, Vectors, put, tensors_of
from kvlite_kernels.statistic import Observation


class KernelsUnavailable(ValueError):
    """The kernels that were asked for do not run here; the message says why."""


class Backend(Protocol):
    """Attends over slots, writes tokens into them and evicts, whatever slots hold: numbers or codes."""

    name: str
    scratch_bytes: int
    """Device memory that it allocated once, beside the slots."""

    def encode(self, slots: Slots, k: Vectors, v: Vectors) -> tuple[Vectors, Vectors]:
        """Keys [n, H_KV, T, D] and values [..., D_V] as `slots` hold them; what is so already stays."""
        ...

    def write(self, slots: Slots, index: Tensor | slice, k: Vectors, v: Vectors) -> None:
        """Put keys and values, encoded or not, into the slots `index`, as `Slots.write` takes them."""
        ...

    def attend(
        self,
        q: Tensor,
        q_pos: Tensor,
        held: Segment,
        new: Segment | None,
        geometry: Geometry,
        observation: Observation | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend q [n, H_Q, T, D] at `q_pos` int [n, T] over slots and, where they are not among these, new tokens.

        Returns out [n, H_Q, T, D_V] in the dtype of q and the statistic of the new tokens [n, H_KV, T]. That of the
        slots is updated in place: what the observation retains of it, plus what they received.
        """
        ...

    def evict(self, slots: Slots, score: Tensor, next_pos: Tensor, protection: Protection) -> None:
        """Move each token that waits in the discard slot over the slot that goes first; padding is dropped.

        `score` fp32 [..., n, H_KV, S + 1]; `next_pos` int [n, 1, 1] is the position that comes next in each row.
        """
        ...


class TorchBackend:
    """The Backend in plain torch."""

    name = "torch"
    scratch_bytes = 0

    def encode(self, slots: Slots, k: Vectors, v: Vectors) -> tuple[Vectors, Vectors]:
        """See Backend."""
        return self._as(slots.k, k), self._as(slots.v, v)

    def write(self, slots: Slots, index: Tensor | slice, k: Vectors, v: Vectors) -> None:
        """See Backend."""
        where = index if isinstance(index, slice) else (index + slots.starts).flatten()
        if isinstance(slots.k, Tensor) and isinstance(slots.v, Tensor):
            assert isinstance(k, Tensor) and isinstance(v, Tensor)
            put(slots.k, 2, where, k)
            put(slots.v, 2, where, v)
            return
        for held, new in zip((slots.k, slots.v), self.encode(slots, k, v), strict=True):
            for tensor, part in zip(tensors_of(held), tensors_of(new), strict=True):
                put(tensor, 2, where, part)

    def attend(
        self,
        q: Tensor,
        q_pos: Tensor,
        held: Segment,
        new: Segment | None,
        geometry: Geometry,
        observation: Observation | None,
    ) -> tuple[Tensor, Tensor | None]:
        """See Backend."""
        is_quantised = isinstance(held.k, Packed)
        query = hadamard(q) if is_quantised else q
        segments = [held] if new is None else [held, new]
        out, received = attend_segments(query, q_pos, segments, geometry, observation)
        if observation is not None and held.statistic is not None:
            if observation.retention is not None:
                held.statistic.mul_(observation.retention)
            held.statistic.add_(received[0])
        if is_quantised:
            out = hadamard(out)
        return out if out.dtype is q.dtype else out.to(q.dtype), received[1] if len(received) > 1 else None

    def evict(self, slots: Slots, score: Tensor, next_pos: Tensor, protection: Protection) -> None:
        """See Backend."""
        waiting = slice(slots.num_slots, None)
        index = choose(priority(score, slots.pos, next_pos, protection), slots.pos, slots.num_slots)
        where, dim = (index + slots.starts).flatten(), slots.starts.dim() - 1
        for _, held in slots.tensors():
            put(held, dim, where, held.narrow(dim, waiting.start, 1).clone())

    def quantise(self, x: Tensor, bits: int, group: int) -> Packed:
        """Rotated vectors as codes, see `lowbit.quantise`."""
        return quantise(x, bits, group)

    def _as(self, held: Vectors, new: Vectors) -> Vectors:
        if isinstance(held, Packed):
            return new if isinstance(new, Packed) else self.quantise(hadamard(new), held.bits, held.group)
        assert isinstance(new, Tensor)
        return new if new.dtype is held.dtype else new.to(held.dtype)


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """Sizes of one layer; `keys` are its slots and the one in which a token waits."""

    query_heads: int
    kv_heads: int
    keys: int
    k_dim: int
    v_dim: int


TORCH = TorchBackend()
