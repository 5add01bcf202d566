"""Weights in 4 and 8 bits as torch's own CPU kernels multiply with them: rounding, packing, products, unpacking.

Letters: M rows, K channels in, N channels out. Those kernels are fast in bfloat16 alone, and for few rows: with more,
a tile of the weights is unpacked and multiplied as a plain matrix. No second copy of the weights stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
from torch import Tensor

GROUP = 32
"""Neighbouring weights of a row that share a scale and an offset in 4 bits."""

COLUMNS = 64
"""Channels out come in blocks of so many, in which the kernel for 4 bits wants its codes."""

DTYPE = torch.bfloat16
_REFITS = 2
_TILE = 1 << 22  # weights that are unpacked at once
_PART = 1 << 24  # weights that are rounded at once


@dataclass(frozen=True, slots=True)
class Packed4:
    """Codes uint8 [N, K / 2] in the kernel's order and `grid` bfloat16 [K / GROUP, N, 2].

    A weight is (code - 8) * grid[..., 0] + grid[..., 1].
    """

    codes: Tensor
    grid: Tensor

    most_rows = 128
    """Most rows that are multiplied from the codes; for more, unpacking pays."""

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Round a matrix [N, K] as `round_to_grid` does, and pack it."""
        rows = max(1, _PART // weight.shape[1])
        parts = [round_to_grid(part.float()) for part in weight.split(rows)]
        return cls.pack(torch.cat([codes for codes, _ in parts]), torch.cat([grid for _, grid in parts]))

    @classmethod
    def pack(cls, codes: Tensor, grid: Tensor) -> Self:
        """Pack codes [N, K] from 0 to 15 and their grid [N, K / GROUP, 2]; `is_served` says which shapes."""
        packed = torch.cat([torch._convert_weight_to_int4pack_for_cpu(part.int(), 1) for part in _blocks(codes)])
        return cls(packed, grid.to(DTYPE).transpose(0, 1).contiguous())

    @classmethod
    def join(cls, parts: Sequence[Self]) -> tuple[Self, list[Self]]:
        """Weights one after another as one, and each of them as a view of it."""
        sizes = [part.shape[0] for part in parts]
        joined = cls(torch.cat([part.codes for part in parts]), torch.cat([part.grid for part in parts], 1))
        views = zip(joined.codes.split(sizes), joined.grid.split(sizes, 1), strict=True)
        return joined, [cls(codes, grid) for codes, grid in views]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], 2 * self.codes.shape[1]

    def multiply(self, x: Tensor) -> Tensor:
        """x bfloat16 [M, K] times the weights, transposed -> [M, N]."""
        return torch._weight_int4pack_mm_for_cpu(x, self.codes, GROUP, self.grid.contiguous())

    def unpack(self, start: int, end: int) -> Tensor:
        """The weights of the channels out from `start` to `end`, whole blocks of them, transposed: [K, end - start]."""
        order = nibble_order()
        inputs = self.shape[1]
        pairs = self.codes[start:end].reshape(-1, inputs, order.block // 2)
        codes = torch.empty(*pairs.shape[:2], order.block, dtype=DTYPE)
        codes[..., order.low] = pairs & 15
        codes[..., order.high] = pairs >> 4
        grid = self.grid[:, start:end].unflatten(1, (-1, order.block)).permute(3, 1, 0, 2).contiguous()
        scale, offset = grid.unsqueeze(3)
        weights = torch.addcmul(offset - 8 * scale, codes.unflatten(1, (-1, GROUP)), scale)
        return weights.flatten(1, 2).movedim(0, 1).reshape(inputs, -1)


@dataclass(frozen=True, slots=True)
class Packed8:
    """Codes int8 [N, K] and a scale bfloat16 [N] for each channel out, by which a weight is code * scale."""

    codes: Tensor
    scale: Tensor

    most_rows = 32

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Round a matrix [N, K] to the nearest of 255 numbers, the largest of each row among them."""
        scale = (weight.abs().amax(-1).float() / 127).clamp(min=1e-30).to(DTYPE)
        codes = torch.empty(weight.shape, dtype=torch.int8)
        rows = max(1, _PART // weight.shape[1])
        for out, part, one in zip(codes.split(rows), weight.split(rows), scale.split(rows), strict=True):
            out.copy_((part.float() / one.float()[:, None]).round_().clamp_(-127, 127))
        return cls(codes, scale)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> tuple[Self, list[Self]]:
        """Weights one after another as one, and each of them as a view of it."""
        sizes = [part.shape[0] for part in parts]
        joined = cls(torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts]))
        views = zip(joined.codes.split(sizes), joined.scale.split(sizes), strict=True)
        return joined, [cls(codes, scale) for codes, scale in views]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def multiply(self, x: Tensor) -> Tensor:
        """x bfloat16 [M, K] times the weights, transposed -> [M, N]."""
        return torch._weight_int8pack_mm(x, self.codes, self.scale)

    def unpack(self, start: int, end: int) -> Tensor:
        """The weights of the channels out from `start` to `end`, transposed: [K, end - start]."""
        return (self.codes[start:end].to(DTYPE) * self.scale[start:end, None]).T

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights of the channels out that `index` names, as `dtype`: [..., K]."""
        return self.codes[index].to(dtype) * self.scale[index].to(dtype).unsqueeze(-1)


Packed = Packed4 | Packed8


def is_served(shape: Sequence[int], bits: int) -> bool:
    """True if matrices of `shape` (N, K) can be packed in so many bits."""
    return len(shape) == 2 and (bits == 8 or (shape[0] % COLUMNS == 0 and shape[1] % GROUP == 0))


def multiply(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """x [M, K] times the weights, transposed, and bias [N] added: [M, N] of x's dtype.

    Other dtypes than bfloat16 are multiplied with unpacked weights, as are more rows than `most_rows`.
    """
    if x.dtype is DTYPE and len(x) <= weight.most_rows:
        out = weight.multiply(x if x.is_contiguous() else x.contiguous())
        return out if bias is None else out + bias
    outputs, inputs = weight.shape
    width = max(1, _TILE // inputs // COLUMNS) * COLUMNS
    tiles = [(start, min(start + width, outputs)) for start in range(0, outputs, width)]
    parts = [torch.matmul(x, weight.unpack(start, end).to(x.dtype)) for start, end in tiles]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return out if bias is None else out + bias


def round_to_grid(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The codes uint8 [N, K] of a matrix fp32 [N, K], and their grid bfloat16 [N, K / GROUP, 2].

    Scale and offset of a group span its range at first; twice they become those with the least squared error for the
    codes that they led to, and the codes are rounded anew. Llama.cpp's Q4_1 is the first step alone.
    """
    groups = weight.unflatten(-1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = _exact((high - low) / 15).clamp_(min=1e-30)
    offset = _exact(low + 8 * scale)
    mean = groups.mean(-1, keepdim=True)
    for step in range(_REFITS + 1):
        codes = ((groups - offset) / scale).round_().clamp_(-8, 7)
        if step == _REFITS:
            break
        middle = codes.mean(-1, keepdim=True)
        spread = codes - middle
        fitted = (spread * (groups - mean)).sum(-1, keepdim=True) / spread.square().sum(-1, keepdim=True)
        scale = torch.where(fitted > 0, _exact(fitted), scale).clamp_(min=1e-30)
        offset = _exact(mean - scale * middle)
    return (codes + 8).flatten(-2).to(torch.uint8), torch.cat([scale, offset], -1).to(DTYPE)


def _exact(value: Tensor) -> Tensor:
    """The numbers as the kernel will have them."""
    return value.to(DTYPE).float()


def _blocks(codes: Tensor) -> tuple[Tensor, ...]:
    """Rows of codes, whole blocks of channels out, few enough to be widened."""
    parts: tuple[Tensor, ...] = codes.split(max(1, _PART // codes.shape[1] // COLUMNS) * COLUMNS)
    return parts


@dataclass(frozen=True, slots=True)
class NibbleOrder:
    """The places in a `block` of channels out of the codes in the low and in the high halves of its bytes."""

    block: int
    low: slice
    high: slice


@cache
def nibble_order() -> NibbleOrder:
    """The order in which torch packs on this processor, read off a matrix that it packs: it differs by vector width."""
    channel = torch.arange(COLUMNS)[:, None].expand(-1, 2)
    halves = [
        torch._convert_weight_to_int4pack_for_cpu(part.int().contiguous(), 1)
        for part in (channel & 15, channel >> 4, torch.tensor([0, 1]).expand(COLUMNS, -1))
    ]
    at, above, inputs = (half.flatten().int() for half in halves)
    low, high = ((at & 15) | (above & 15) << 4).tolist(), ((at >> 4) | (above >> 4) << 4).tolist()
    half = (inputs & 15).tolist().index(1)
    step = low[1] - low[0]
    order = NibbleOrder(2 * half, slice(0, step * half, step), slice(high[0], high[0] + step * half, step))
    places = torch.arange(order.block).tolist()
    assert low[:half] == places[order.low] and high[:half] == places[order.high], "torch packs in an unknown order"
    return order
