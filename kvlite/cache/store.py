"""What a slot holds of a key and a value: the seam behind which lower-precision formats live."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kvlite.cache.rotation import Rotation
from kvlite.memory.shape import LayerShape
from kvlite_kernels.reference import Vectors


def put(held: Tensor, rows: slice, index: Tensor | slice, new: Tensor) -> None:
    """Overwrite slots of held [B, H_KV, N, ...] with new [n, H_KV or 1, T, ...].

    `index` is a slice where all rows and heads use the same slots, else int64 [n * H_KV * T], which slot of all.
    """
    if isinstance(index, slice):
        of_rows(held, rows).narrow(2, index.start, index.stop - index.start).copy_(new)
        return
    tail = held.shape[3:]
    new = new.expand(-1, held.shape[1], *new.shape[2:]).reshape(-1, *tail)
    held.view(-1, *tail).index_copy_(0, index, new.to(held.dtype))


def of_rows(held: Tensor, rows: slice) -> Tensor:
    """`held[rows]`, for nothing where these are all of them."""
    return held if rows.stop - rows.start == held.shape[0] else held[rows]


class SlotStore(Protocol):
    """Keys and values of B rows, H_KV heads and N slots, written slot by slot and read to attend over.

    Attention works in the store's form, into which `encode` brings what is new: a token is attended as its slot will
    hold it, from its first step on, whatever the chunks and whether it is kept.
    """

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor held, by name; the first three dimensions of each are B, H_KV, N."""
        ...

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [n, H_Q, T, D], k [n, H_KV, T, D] and v [n, H_KV, T, D_V] in the store's form, as numbers."""
        ...

    def coded(self, k: Vectors, v: Vectors) -> tuple[Vectors, Vectors]:
        """Encoded k and v as slots will hold them; what is so already stays."""
        ...

    def decode(self, out: Tensor) -> Tensor:
        """What attention makes of the store's values [n, H_Q, T, D_V], in the model's form."""
        ...

    def write(self, rows: slice, index: Tensor | slice, k: Vectors, v: Vectors) -> None:
        """Overwrite the slots `index` as `put` does with encoded k [n, H_KV, T, D] and v [n, H_KV, T, D_V]."""
        ...

    def view(self, rows: slice, extent: int) -> tuple[Vectors, Vectors]:
        """Keys and values of the first `extent` slots in the store's form, [n, H_KV, extent, D] and [..., D_V]."""
        ...

    def read(self, rows: slice, extent: int) -> tuple[Tensor, Tensor]:
        """The same as numbers in the model's form; where slots are coded, a copy."""
        ...

    def rotate(self, row: int, delta: Tensor, rotation: Rotation) -> None:
        """Turn the first n keys of a row on by `delta` int [H_KV, n] positions."""
        ...

    def clear(self, row: int, live: int) -> None:
        """Zero the first `live` slots of a row, and the last, so that nothing of them reaches a sum again."""
        ...

    def part(self, rows: slice) -> SlotStore:
        """The store of some of the rows, in the same memory."""
        ...


class DenseStore:
    """Keys and values as they are, in one floating-point dtype."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    @classmethod
    def zeros(cls, shape: LayerShape, rows: int, slots: int, dtype: torch.dtype, device: torch.device) -> DenseStore:
        """Empty slots."""
        k, v = (
            torch.zeros(rows, shape.kv_heads, slots, dim, dtype=dtype, device=device)
            for dim in (shape.k_dim, shape.v_dim)
        )
        return cls(k, v)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"k": self.k, "v": self.v}

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, _as(self.k, k), _as(self.v, v)

    def coded(self, k: Vectors, v: Vectors) -> tuple[Vectors, Vectors]:
        return k, v

    def decode(self, out: Tensor) -> Tensor:
        return out

    def write(self, rows: slice, index: Tensor | slice, k: Vectors, v: Vectors) -> None:
        assert isinstance(k, Tensor) and isinstance(v, Tensor)
        put(self.k, rows, index, k)
        put(self.v, rows, index, v)

    def view(self, rows: slice, extent: int) -> tuple[Vectors, Vectors]:
        return self.read(rows, extent)

    def read(self, rows: slice, extent: int) -> tuple[Tensor, Tensor]:
        return of_rows(self.k, rows).narrow(2, 0, extent), of_rows(self.v, rows).narrow(2, 0, extent)

    def rotate(self, row: int, delta: Tensor, rotation: Rotation) -> None:
        rotation.turn_(self.k[row, :, : delta.shape[-1]], delta)

    def clear(self, row: int, live: int) -> None:
        for held in (self.k, self.v):
            held[row, :, -1] = 0
            held[row, :, :live] = 0  # a value that is not finite would poison even a sum it has no weight in

    def part(self, rows: slice) -> DenseStore:
        return DenseStore(self.k[rows], self.v[rows])


def _as(held: Tensor, new: Tensor) -> Tensor:
    return new if new.dtype is held.dtype else new.to(held.dtype)
