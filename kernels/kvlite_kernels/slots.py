"""Slots as a backend sees them: keys, values and what is known of each token, in tensors that never move.

Each KV head has S slots and, behind them, the discard slot: new tokens that are not kept are written there, so that
shapes never depend on data, and a decoded token waits there until its victim is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvlite_kernels.lowbit import Packed

Vectors = Tensor | Packed
"""Keys or values: numbers [..., H_KV, N, D], or codes of the same shape that are widened a tile at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Slots of B rows of one layer, or of several layers alike, which are then the first dimension.

    `k` [..., B, H_KV, S + 1, D] and `v` [..., D_V]; `pos` and `rot` int32, `statistic` fp32 or None, and `bias` fp16 or
    None, which is added to the logits of a key and is 0 in the discard slot, all [..., B, H_KV, S + 1]. `starts` int64
    [..., B, H_KV, 1] says where a head's slots begin in the storage of each tensor, counted in slots: a write needs
    nothing else, so heads need not lie side by side.
    """

    k: Vectors
    v: Vectors
    pos: Tensor
    rot: Tensor
    statistic: Tensor | None
    starts: Tensor
    bias: Tensor | None = None

    @classmethod
    def empty(cls, k: Vectors, v: Vectors, has_statistic: bool, has_bias: bool = False) -> Slots:
        """Slots without a token over the zeros `k` and `v`, which are contiguous."""
        *heads, slots, _ = k.shape
        device = tensors_of(k)[0].device
        pos, rot = (torch.full((*heads, slots), -1, dtype=torch.int32, device=device) for _ in range(2))
        statistic = torch.zeros(*heads, slots, dtype=torch.float32, device=device) if has_statistic else None
        bias = torch.zeros(*heads, slots, dtype=torch.float16, device=device) if has_bias else None
        starts = torch.arange(0, pos.numel(), slots, device=device).view(*heads, 1)
        return cls(k, v, pos, rot, statistic, starts, bias)

    @property
    def num_slots(self) -> int:
        """S, the slots of a KV head without the discard slot."""
        return self.pos.shape[-1] - 1

    def __getitem__(self, index: Any) -> Slots:
        """The slots at `index` of the dimensions before KV heads, in the same memory."""
        statistic, bias = (None if x is None else x[index] for x in (self.statistic, self.bias))
        pos, rot, starts = (x[index] for x in (self.pos, self.rot, self.starts))
        return Slots(self.k[index], self.v[index], pos, rot, statistic, starts, bias)

    def joined(self, entries: slice) -> Slots:
        """The slots of B rows whose KV heads are those of all these `entries` of the first dimension, in their order.

        Where that is more than one entry, each has a single KV head.
        """
        if entries.stop - entries.start == 1:
            return self[entries.start]

        def beside(x: Tensor) -> Tensor:
            return x[entries, :, 0].transpose(0, 1)

        k, v = (
            Packed(beside(x.codes), beside(x.scale), x.dim) if isinstance(x, Packed) else beside(x)
            for x in (self.k, self.v)
        )
        statistic, bias = (None if x is None else beside(x) for x in (self.statistic, self.bias))
        return Slots(k, v, beside(self.pos), beside(self.rot), statistic, beside(self.starts), bias)

    def of_rows(self, rows: slice) -> Slots:
        """The slots of some of the rows."""
        if rows.stop - rows.start == self.pos.shape[-3]:
            return self
        return self[rows] if self.pos.dim() == 3 else self[:, rows]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that holds tokens, by name."""
        for name, vectors in (("k", self.k), ("v", self.v)):
            yield from zip((name, f"{name}_scale"), tensors_of(vectors), strict=False)
        yield from (("pos", self.pos), ("rot", self.rot))
        if self.statistic is not None:
            yield "statistic", self.statistic
        if self.bias is not None:
            yield "bias", self.bias

    def write(self, index: Tensor | slice, **new: Tensor) -> None:
        """Overwrite slots of the tensors named `k`, `k_scale`, ..., `bias` with `new` [..., H_KV or 1, T, ...].

        `index` is a slice where all heads use the same slots, else int64 [..., H_KV or 1, T].
        """
        if isinstance(index, Tensor):
            index = (index + self.starts).flatten()
        held = dict(self.tensors())
        for name, tensor in new.items():
            put(held[name], self.starts.dim() - 1, index, tensor)


def move(held: Tensor, dim: int, source: Tensor, target: Tensor) -> None:
    """Overwrite slots `target` int64 [n] with slots `source` of the same tensor, counted in its whole storage.

    Slots are dimension `dim` of `held`.
    """
    storage = _storage(held, dim)
    storage.index_copy_(0, target, storage.index_select(0, source))


def _storage(held: Tensor, dim: int) -> Tensor:
    """All slots of a tensor's storage [N, ...]; slots are dimension `dim` of `held`."""
    shape = held.shape[dim + 1 :]
    width = shape.numel()
    everything = held.untyped_storage().nbytes() // held.itemsize // width
    return held.as_strided((everything, *shape), (width, 1) if shape else (1,), 0)


def tensors_of(vectors: Vectors) -> tuple[Tensor, ...]:
    """The tensors of keys or values: numbers, or codes and their scales."""
    return (vectors.codes, vectors.scale) if isinstance(vectors, Packed) else (vectors,)


def put(held: Tensor, dim: int, index: Tensor | slice, new: Tensor) -> None:
    """Overwrite slots, which are dimension `dim` of `held`, with `new`, which has T there.

    `index` is a slice where all heads use the same slots, else int64 [...], which slot of the tensor's whole storage.
    """
    if isinstance(index, slice):
        held.narrow(dim, index.start, index.stop - index.start).copy_(new)
        return
    shape = held.shape[dim + 1 :]
    new = new.expand(*held.shape[:dim], *new.shape[new.dim() - 1 - len(shape) :])
    _storage(held, dim).index_copy_(0, index, new.reshape(-1, *shape).to(held.dtype))
