"""The blocks of GGUF types as codes, scales and offsets, and from there as packed weights.

Layouts: ggml-common.h and ggml-quants.c of ggml-org/llama.cpp. Letters: N channels out, K in. A weight is
code * scale + low, where scale and low are those of 32 neighbours.
"""

from __future__ import annotations

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from kvlite.gguf.header import BLOCKS
from kvlite.gguf.packing import FOUR_BITS
from kvlite_kernels.grid import GROUP
from kvlite_kernels.packed import Packed4, PackedPair

_BITS = {"Q8_0": 8, "Q6_K": 8, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5}


def pack_blocks(rows: Tensor, kind: str) -> Packed4 | PackedPair:
    """Pack rows of blocks uint8 [N, bytes]: Q4_0, Q4_1 and Q4_K in 4 bits, the others in two halves of 4."""
    codes, scale, low = _read(rows, kind)
    if kind in FOUR_BITS:
        return Packed4.pack(codes, torch.stack([scale, low + 8 * scale], -1))
    shift = 128 - 2 ** (_BITS[kind] - 1)  # so that the codes lie around 128, and what is rounded is small
    return PackedPair.pack(codes.to(torch.int16) + shift, scale, low - shift * scale)


def _read(rows: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, K], scale and low fp32 [N, K / GROUP]."""
    if kind == "Q6_K":
        return _anew(torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType.Q6_K)))
    blocks = rows.unflatten(1, (-1, BLOCKS[kind][1]))
    codes, scale, low = _READERS[kind](blocks)
    return codes.flatten(1), scale.flatten(1), low.flatten(1)


def _anew(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = weights.unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(-1) / 127).clamp_(min=1e-30)
    codes = (groups / scale.unsqueeze(-1)).round_().add_(128).to(torch.uint8)
    return codes.flatten(1), scale, -128 * scale


def _float(pair: Tensor) -> Tensor:
    """Numbers fp16 in bytes [..., 2 n] as fp32 [..., n]."""
    return pair.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    return torch.cat([packed & 15, packed >> 4], -1)


def _bits(packed: Tensor) -> Tensor:
    """The bits of bytes [..., n], lowest first: [..., 8 n]."""
    return ((packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2)


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
    return _nibbles(blocks[..., 16:].unflatten(-1, (4, 32))).flatten(-2), *_grid_k(blocks)


def _q5_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(-3, -2)  # [..., 8, 32]
    high = blocks[..., 16:48].unsqueeze(-2) >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    return (low | high << 4).flatten(-2), *_grid_k(blocks)


_READERS = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k,
}  # fmt: skip
