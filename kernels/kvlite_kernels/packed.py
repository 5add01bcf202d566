"""Weights in 4 and 8 bits as torch's own CPU kernels multiply with them: rounding, packing, products, unpacking.

Letters: M rows, K channels in, N channels out. Those kernels are fast in bfloat16 alone, and for few rows: with more,
a tile of the weights is unpacked and multiplied as a plain matrix. No second copy of the weights stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
from torch import Tensor

from kvlite_kernels.grid import DTYPE, GROUP, exact, round_to_grid

COLUMNS = 64
"""Channels out come in blocks of so many, in which the kernel for 4 bits wants its codes."""

_TILE = 1 << 22  # weights that are unpacked at once
_PART = 1 << 21  # weights that are rounded and packed at once


@dataclass(frozen=True, slots=True)
class Packed4:
    """Codes uint8 [N, K / 2] in the kernel's order and `grid` bfloat16 [K / GROUP, N, 2].

    A weight is (code - 8) * grid[..., 0] + grid[..., 1].
    """

    codes: Tensor
    grid: Tensor

    most_rows = 80
    """Most rows that are multiplied from the codes; for more, unpacking pays."""

    @property
    def scales(self) -> Tensor:
        """Tensors held beside the codes."""
        return self.grid

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Round a matrix [N, K] as `round_to_grid` does, and pack it."""
        parts = weight.split(rows_at_once(weight.shape[1]))
        return cls.stack((cls.pack(*round_to_grid(part.float())) for part in parts), weight.shape[0])

    @classmethod
    def pack(cls, codes: Tensor, grid: Tensor) -> Self:
        """Pack codes [N, K] from 0 to 15 and their grid [N, K / GROUP, 2]; `is_served` says which shapes."""
        packed = torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        return cls(packed, grid.to(DTYPE).transpose(0, 1).contiguous())

    @classmethod
    def stack(cls, parts: Iterable[Self], outputs: int) -> Self:
        """Weights one after another as one of so many `outputs`, each put into its place as it comes."""
        at, whole = 0, None
        for part in parts:
            count, half = part.codes.shape
            if whole is None:
                whole = cls(part.codes.new_empty(outputs, half), part.grid.new_empty(len(part.grid), outputs, 2))
            whole.codes[at : at + count] = part.codes
            whole.grid[:, at : at + count] = part.grid
            at += count
        assert whole is not None and at == outputs
        return whole

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
        scale, offset = self.grid_of(start, end)
        return _weights(self.codes_of(start, end).view(torch.int8) - 8, scale, offset)

    def codes_of(self, start: int, end: int) -> Tensor:
        """Codes from 0 to 15 of those channels out, uint8 [blocks, K, block]."""
        order = nibble_order()
        pairs = self.codes[start:end].reshape(-1, self.shape[1], order.block // 2)
        codes = pairs.new_empty(*pairs.shape[:2], order.block)
        codes[..., order.low] = pairs & 15
        codes[..., order.high] = pairs >> 4
        return codes

    def grid_of(self, start: int, end: int) -> Tensor:
        """Scales and offsets of those channels out, bfloat16 [2, blocks, K / GROUP, block]."""
        blocks: Tensor = self.grid[:, start:end].unflatten(1, (-1, nibble_order().block))
        return blocks.permute(3, 1, 0, 2).contiguous()

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights of the channels out that `index` names, as `dtype`: [..., K]."""
        order = nibble_order()
        places = torch.arange(order.block)
        byte, is_high = torch.empty_like(places), torch.zeros_like(places)
        byte[order.low] = byte[order.high] = torch.arange(order.block // 2)
        is_high[order.high] = 1
        flat, place = index.flatten(), index.flatten() % order.block
        block = self.codes.view(-1, self.shape[1], order.block // 2)[flat // order.block]
        pairs = block[torch.arange(len(flat)), :, byte[place]]
        codes = (pairs >> (4 * is_high[place]).to(torch.uint8)[:, None]) & 15
        scale, offset = self.grid[:, flat].to(dtype).movedim(1, 0).unsqueeze(2).unbind(-1)
        weights = torch.addcmul(offset, codes.to(dtype).unflatten(1, (-1, GROUP)) - 8, scale)
        return weights.flatten(1).view(*index.shape, -1)


@dataclass(frozen=True, slots=True)
class Packed8:
    """Codes int8 [N, K] and a scale bfloat16 [N] for each channel out, by which a weight is code * scale."""

    codes: Tensor
    scale: Tensor

    most_rows = 32

    @property
    def scales(self) -> Tensor:
        return self.scale

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Round a matrix [N, K] to the nearest of 255 numbers, the largest of each row among them."""
        scale = (weight.abs().amax(-1).float() / 127).clamp(min=1e-30).to(DTYPE)
        codes = torch.empty(weight.shape, dtype=torch.int8)
        rows = rows_at_once(weight.shape[1])
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


@dataclass(frozen=True, slots=True)
class PackedPair:
    """Weights of 8 bits as two of 4, high halves before low ones, in one matrix [N, 2 K] that takes its input twice.

    So the kernel for 4 bits multiplies with codes of 8 that have a scale per group, which that for 8 bits cannot.
    """

    halves: Packed4

    most_rows = 64

    @classmethod
    def pack(cls, codes: Tensor, scale: Tensor, low: Tensor) -> Self:
        """Pack codes [N, K] from 0 to 255; weights are code * scale + low, those of the group [N, K / GROUP]."""
        middle = low + 128 * scale  # of the scale as it is given: it is rounded where codes are near 128
        scale = exact(scale)
        high = torch.stack([16 * scale, middle], -1)
        rest = torch.stack([scale, 8 * scale], -1)
        both = torch.cat([codes >> 4, codes & 15], 1)
        return cls(Packed4.pack(both, torch.cat([high, rest], 1)))

    @classmethod
    def stack(cls, parts: Iterable[Self], outputs: int) -> Self:
        """Weights one after another as one of so many `outputs`, each put into its place as it comes."""
        return cls(Packed4.stack((part.halves for part in parts), outputs))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> tuple[Self, list[Self]]:
        """Weights one after another as one, and each of them as a view of it."""
        joined, views = Packed4.join([part.halves for part in parts])
        return cls(joined), [cls(view) for view in views]

    @property
    def codes(self) -> Tensor:
        return self.halves.codes

    @property
    def scales(self) -> Tensor:
        return self.halves.scales

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.halves.shape
        return outputs, inputs // 2

    def multiply(self, x: Tensor) -> Tensor:
        """x bfloat16 [M, K] times the weights, transposed -> [M, N]."""
        return self.halves.multiply(torch.cat([x, x], -1))

    def unpack(self, start: int, end: int) -> Tensor:
        """The weights of the channels out from `start` to `end`, whole blocks of them, transposed: [K, end - start]."""
        high, low = self.halves.codes_of(start, end).chunk(2, 1)
        (_, scale), (middle, _) = (part.chunk(2, 1) for part in self.halves.grid_of(start, end))
        return _weights((high << 4 | low).bitwise_xor_(128).view(torch.int8), scale, middle)  # rounded once

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights of the channels out that `index` names, as `dtype`: [..., K]."""
        high, low = self.halves.rows(index, torch.float32).chunk(2, -1)
        return (high + low).to(dtype)


Packed = Packed4 | Packed8 | PackedPair


def _weights(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Codes int8 [blocks, K, block] times scale, and offset, of their groups [blocks, K / GROUP, block]: [K, N]."""
    grouped = codes.to(DTYPE).unflatten(1, (-1, GROUP))
    weights = torch.addcmul(offset.unsqueeze(2), grouped, scale.unsqueeze(2))
    return weights.flatten(1, 2).movedim(0, 1).reshape(codes.shape[1], -1)


def is_served(shape: Sequence[int], bits: int) -> bool:
    """True if matrices of `shape` (N, K) can be packed in so many bits; torch's kernel for 8 reads K 16 at a time."""
    if len(shape) != 2:
        return False
    return shape[1] % 16 == 0 if bits == 8 else shape[0] % COLUMNS == 0 and shape[1] % GROUP == 0


def multiply(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """x [M, K] times the weights, transposed, and bias [N] added: [M, N] of x's dtype.

    Other dtypes than bfloat16 are multiplied with unpacked weights, as are more rows than `most_rows`.
    """
    if x.dtype is DTYPE and x.shape[0] <= weight.most_rows:
        out = weight.multiply(x if x.is_contiguous() else x.contiguous())
        return out if bias is None else out + bias
    outputs, inputs = weight.shape
    width = max(1, _TILE // inputs // COLUMNS) * COLUMNS
    tiles = [(start, min(start + width, outputs)) for start in range(0, outputs, width)]
    parts = [torch.matmul(x, weight.unpack(start, end).to(x.dtype)) for start, end in tiles]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return out if bias is None else out + bias


def rows_at_once(inputs: int) -> int:
    """Channels out, whole blocks of them, that are rounded and packed at once: few, since they are widened for it."""
    return max(1, _PART // inputs // COLUMNS) * COLUMNS


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
