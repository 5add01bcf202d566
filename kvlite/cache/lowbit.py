"""Slots in 8 or 4 bits: each key and value is rotated and coded by itself, so that a slot can be overwritten alone.

The Hadamard rotation comes after the model's own (RoPE) and is turned back in the output of attention alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvlite.cache.rotation import Rotation
from kvlite.cache.store import put
from kvlite.memory.format import SlotFormat
from kvlite.memory.shape import LayerShape
from kvlite_kernels.choice import Quantise
from kvlite_kernels.lowbit import Packed, hadamard, quantise
from kvlite_kernels.reference import TILE_ELEMENTS, Vectors


class LowBitStore:
    """Keys and values as codes of one coded SlotFormat; the fp16 scales lie beside them and are slots like them."""

    def __init__(self, k: Packed, v: Packed, stored: SlotFormat, quantise: Quantise = quantise) -> None:
        self.k, self.v, self.stored, self._quantise = k, v, stored, quantise

    @classmethod
    def zeros(
        cls,
        shape: LayerShape,
        rows: int,
        slots: int,
        stored: SlotFormat,
        device: torch.device,
        quantise: Quantise = quantise,
    ) -> LowBitStore:
        """Empty slots, which `quantise` codes for."""
        heads = (rows, shape.kv_heads, slots)
        dtype = torch.uint8 if stored.bits == 4 else torch.int8

        def packed(dim: int) -> Packed:
            codes = torch.zeros(*heads, stored.code_bytes(dim), dtype=dtype, device=device)
            scale = torch.zeros(*heads, stored.num_scales(dim), dtype=torch.float16, device=device)
            return Packed(codes, scale, dim)

        return cls(packed(shape.k_dim), packed(shape.v_dim), stored, quantise)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"k": self.k.codes, "k_scale": self.k.scale, "v": self.v.codes, "v_scale": self.v.scale}

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return hadamard(q), hadamard(k), hadamard(v)

    def coded(self, k: Vectors, v: Vectors) -> tuple[Vectors, Vectors]:
        return self._coded(k), self._coded(v)

    def decode(self, out: Tensor) -> Tensor:
        return hadamard(out)

    def write(self, rows: slice, index: Tensor | slice, k: Vectors, v: Vectors) -> None:
        for held, new in ((self.k, self._coded(k)), (self.v, self._coded(v))):
            put(held.codes, rows, index, new.codes)
            put(held.scale, rows, index, new.scale)

    def view(self, rows: slice, extent: int) -> tuple[Vectors, Vectors]:
        return self.k[rows, :, :extent], self.v[rows, :, :extent]

    def read(self, rows: slice, extent: int) -> tuple[Tensor, Tensor]:
        k, v = (hadamard(held[rows, :, :extent].to(torch.float32)) for held in (self.k, self.v))
        return k, v

    def rotate(self, row: int, delta: Tensor, rotation: Rotation) -> None:
        """As SlotStore says. A key that turns is rounded once more; one whose delta is 0 keeps its codes."""
        tile = max(1, TILE_ELEMENTS // (delta.shape[0] * self.k.dim))
        for start in range(0, delta.shape[1], tile):
            held, by = self.k[row, :, start : start + tile][:, : delta.shape[1] - start], delta[:, start : start + tile]
            keys = hadamard(held.to(torch.float32))
            rotation.turn_(keys, by)
            turned, moves = self._coded(hadamard(keys)), (by != 0)[..., None]
            held.codes.copy_(torch.where(moves, turned.codes, held.codes))
            held.scale.copy_(torch.where(moves, turned.scale, held.scale))

    def clear(self, row: int, live: int) -> None:
        for tensor in self.tensors.values():
            tensor[row, :, :live] = 0
            tensor[row, :, -1] = 0

    def part(self, rows: slice) -> LowBitStore:
        return LowBitStore(self.k[rows], self.v[rows], self.stored, self._quantise)

    def _coded(self, x: Vectors) -> Packed:
        return x if isinstance(x, Packed) else self._quantise(x, self.stored.bits, self.stored.group(x.shape[-1]))
