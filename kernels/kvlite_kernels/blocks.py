"""The blocks of GGUF types in plain torch: codes, scales and offsets, the weights they stand for, and products.

Layouts: ggml-common.h and ggml-quants.c of ggml-org/llama.cpp. Letters: M rows, N channels out, K in. A weight is
code * scale + low, where scale and low are those of 32 neighbours, of Q6_K of 16. The reference for kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite_kernels.grid import GROUP

SIZES = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210),
}  # fmt: skip
"""Weights and bytes of a block, by the name of its type."""

BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8}
"""Bits of a code."""

_TILE = 1 << 24  # weights that are unpacked at once


@dataclass(frozen=True, slots=True)
class Blocks:
    """Weights [N, K] in blocks of `kind`, as a file holds them: `data` uint8 [N, bytes], its rows in one piece."""

    data: Tensor
    kind: str

    @property
    def shape(self) -> tuple[int, int]:
        weights, size = SIZES[self.kind]
        return self.data.shape[0], self.data.shape[1] // size * weights


def multiply(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    """x [M, K] times the weights, transposed, and bias [N] added: [M, N] of x's dtype, summed in fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.to(wide) @ unpack(weight.data, weight.kind).to(wide).T
    return (out if bias is None else out + bias.to(wide)).to(x.dtype)


def multiply_unpacked(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    """As `multiply`, with weights rounded to x's dtype, a tile of them unpacked at a time."""
    tiles = weight.data.split(max(1, _TILE // weight.shape[1]))
    parts = [torch.matmul(x, unpack(tile, weight.kind).to(x.dtype).T) for tile in tiles]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return out if bias is None else out + bias


def read(rows: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, K], scale and low fp32 [N, K / GROUP], of Q6_K [N, 2 K / GROUP], of rows uint8 [N, bytes]."""
    codes, scale, low = _READERS[kind](rows.unflatten(1, (-1, SIZES[kind][1])))
    return codes.flatten(1), scale.flatten(1), low.flatten(1)


def unpack(rows: Tensor, kind: str) -> Tensor:
    """The weights fp32 [N, K] of rows of blocks uint8 [N, bytes], in the numbers of llama.cpp."""
    codes, scale, low = read(rows, kind)
    groups: Tensor = codes.float().unflatten(1, (scale.shape[1], -1))
    return groups.mul_(scale.unsqueeze(-1)).add_(low.unsqueeze(-1)).flatten(1)


def _float(pair: Tensor) -> Tensor:
    """Numbers fp16 in bytes [..., 2 n] as fp32 [..., n]."""
    return pair.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    return torch.cat([packed & 15, packed >> 4], -1)


def _shifts(packed: Tensor, step: int) -> Tensor:
    """Shifts uint8 [8 / step] to each group of so many bits of a byte."""
    return torch.arange(0, 8, step, dtype=torch.uint8, device=packed.device)


def _bits(packed: Tensor) -> Tensor:
    """The bits of bytes [..., n], lowest first: [..., 8 n]."""
    return ((packed.unsqueeze(-1) >> _shifts(packed, 1)) & 1).flatten(-2)


def _q4_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = _float(blocks[..., :2])
    return _nibbles(blocks[..., 2:]), scale, -8 * scale


def _q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, low = _float(blocks[..., :4]).split(1, -1)
    return _nibbles(blocks[..., 4:]), scale, low


def _q5_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = _float(blocks[..., :2])
    return _nibbles(blocks[..., 6:]) | _bits(blocks[..., 2:6]) << 4, scale, -16 * scale


def _q5_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, low = _float(blocks[..., :4]).split(1, -1)
    return _nibbles(blocks[..., 8:]) | _bits(blocks[..., 4:8]) << 4, scale, low


def _q8_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = _float(blocks[..., :2])
    return blocks[..., 2:] ^ 128, scale, -128 * scale


def _grid_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and low [..., 8] of the eight groups of a block, 6 bits each, over two numbers of the block."""
    scale, least = _float(blocks[..., :4]).split(1, -1)
    first, second, third = blocks[..., 4:16].split(4, -1)
    scales = torch.cat([first & 63, (third & 15) | (first >> 6) << 4], -1)
    lows = torch.cat([second & 63, (third >> 4) | (second >> 6) << 4], -1)
    return scale * scales, -least * lows


def _q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _nibbles(blocks[..., 16:].unflatten(-1, (4, GROUP))).flatten(-2), *_grid_k(blocks)


def _q5_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, GROUP))).unflatten(-1, (2, GROUP)).flatten(-3, -2)
    high = blocks[..., 16:48].unsqueeze(-2) >> _shifts(blocks, 1)[:, None] & 1  # [..., 8, 32], as `low` is
    return (low | high << 4).flatten(-2), *_grid_k(blocks)


def _q6_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (4, GROUP))  # [..., 2, 4, 32]
    high = blocks[..., 128:192].unflatten(-1, (2, 1, GROUP)) >> _shifts(blocks, 2)[:, None] & 3
    scale = _float(blocks[..., 208:]) * blocks[..., 192:208].view(torch.int8)
    return (low | high << 4).flatten(-3), scale, -32 * scale


_READERS = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}  # fmt: skip
