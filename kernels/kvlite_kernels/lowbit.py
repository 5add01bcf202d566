"""Low-bit slots in plain torch: vectors rotated by a Hadamard matrix, coded in 8, 6 or 4 bits with scales.

A vector is coded by itself, in groups of neighbouring channels, so that any slot can be overwritten alone. The
rotation spreads what lies in a few channels over all of a block; it is orthonormal and its own inverse, so attention
may work on rotated queries and stored vectors and turn back its output alone.

Letters: B rows, H_KV KV heads, N keys, D head dim. Arithmetic is fp32 (fp64 if the input is).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

MAX_SCALE = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class Packed:
    """Vectors [B, H_KV, N, `dim`] as `codes` and fp16 `scale` [B, H_KV, N, groups]; `to` widens them.

    8 bits are int8 codes [..., D]. 4 bits are uint8 [..., (D + 1) // 2]: byte j holds channel j in its low half and
    channel j + (D + 1) // 2 in its high half, each 8 above its value, so that a thread unpacks both
    where it has them. 6 bits are uint8 [..., (D + 1) // 2 + (D + 3) // 4], 32 above their values: the low 4 of each as
    those of 4 bits lie, and behind them the high 2, those of a byte in half a byte, of two neighbours in one.
    """

    codes: Tensor
    scale: Tensor
    dim: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.codes.shape[:-1], self.dim))

    @property
    def dtype(self) -> torch.dtype:
        return self.codes.dtype

    @property
    def bits(self) -> int:
        if self.codes.dtype != torch.uint8:
            return 8
        return 4 if self.codes.shape[-1] == code_bytes(self.dim, 4) else 6

    @property
    def group(self) -> int:
        """The number of channels that share a scale."""
        return self.dim // self.scale.shape[-1]

    @property
    def run(self) -> int:
        """The number of channels that share a scale from any whole number of runs on, in either half of a vector."""
        return gcd((self.dim + 1) // 2, self.group)

    def __getitem__(self, index: Any) -> Packed:
        """The vectors at `index`, which leaves the last dimension as it is; shares memory where a tensor would."""
        return Packed(self.codes[index], self.scale[index], self.dim)

    def to(self, dtype: torch.dtype) -> Tensor:
        """The vectors as numbers [..., D], still rotated."""
        if (bits := self.bits) < 8:
            half = (self.dim + 1) // 2
            low, high = self.codes & 15, self.codes >> 4
            halves = torch.cat([low[..., :half], high[..., :half]], -1)
            if bits == 6:
                pairs = torch.stack([low[..., half:], high[..., half:]], -1).flatten(-2)[..., :half]
                halves |= torch.cat([pairs & 3, pairs >> 2], -1) << 4
            values = halves[..., : self.dim].to(dtype, memory_format=torch.contiguous_format).sub_(1 << bits - 1)
        else:
            values = self.codes.to(dtype, memory_format=torch.contiguous_format)
        values.unflatten(-1, (self.scale.shape[-1], -1)).mul_(self.scale[..., None].to(dtype))
        return values


def code_bytes(dim: int, bits: int) -> int:
    """The bytes of a vector's codes of 8, 6 or 4 bits, see `Packed`."""
    if bits == 8:
        return dim
    return (dim + 1) // 2 + ((dim + 3) // 4 if bits == 6 else 0)


def hadamard(x: Tensor) -> Tensor:
    """x [..., D] times the orthonormal Hadamard matrix, in blocks of the largest power of two that divides D."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    block = x.shape[-1] & -x.shape[-1]
    blocks: Tensor = x.to(dtype).unflatten(-1, (-1, block)) @ _matrix(block, dtype, x.device)
    return blocks.flatten(-2)


def quantise(x: Tensor, bits: int, group: int) -> Packed:
    """Code x [..., D] in 8, 6 or 4 `bits` around zero, with one scale per `group` channels, which divides D.

    The largest magnitude of a group takes the lowest code, which has no positive twin; the scale's sign makes it fit.
    A scale is at most what fp16 holds: larger numbers saturate, and groups too small for it become zero. A group that
    is not finite stays so, as NaN.
    """
    lowest = -(2 ** (bits - 1))
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, group))
    peak = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scale = (peak / lowest).clamp(-MAX_SCALE, MAX_SCALE).to(torch.float16).masked_fill(~peak.isfinite(), torch.nan)
    steps = (grouped / scale.to(grouped.dtype)).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    codes = steps.round_().clamp_(lowest, -lowest - 1).flatten(-2)
    if bits == 8:
        return Packed(codes.to(torch.int8), scale.squeeze(-1), x.shape[-1])
    first, second = pad(codes.sub_(lowest).to(torch.uint8), (0, x.shape[-1] % 2)).chunk(2, -1)
    packed = (first & 15) | (second << 4)
    if bits == 6:
        pairs = (first >> 4) | (second >> 4 << 2)
        even, odd = pad(pairs, (0, pairs.shape[-1] % 2)).unflatten(-1, (-1, 2)).unbind(-1)
        packed = torch.cat([packed, even | (odd << 4)], -1)
    return Packed(packed, scale.squeeze(-1), x.shape[-1])


@cache
def _matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The Hadamard matrix of a power of two, [size, size], divided by the root of its size."""
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    return matrix
