"""Rounding of weights to codes of 4 bits, of which 32 neighbours share a scale and an offset."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Neighbouring weights of a row that share a scale and an offset."""

DTYPE = torch.bfloat16
"""The dtype of scales and offsets, and of what is multiplied."""

_REFITS = 2


def round_to_grid(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The codes uint8 [N, K] of a matrix fp32 [N, K], and their grid bfloat16 [N, K / GROUP, 2].

    Scale and offset of a group span its range at first; twice they become those with the least squared error for the
    codes that they led to, and the codes are rounded anew. Llama.cpp's Q4_1 is the first step alone.
    """
    groups = weight.unflatten(-1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = exact((high - low) / 15).clamp_(min=1e-30)
    offset = exact(low + 8 * scale)
    mean = groups.mean(-1, keepdim=True)
    for step in range(_REFITS + 1):
        codes = ((groups - offset) / scale).round_().clamp_(-8, 7)
        if step == _REFITS:
            break
        middle = codes.mean(-1, keepdim=True)
        spread = codes - middle
        fitted = (spread * (groups - mean)).sum(-1, keepdim=True) / spread.square().sum(-1, keepdim=True)
        scale = torch.where(fitted > 0, exact(fitted), scale).clamp_(min=1e-30)
        offset = exact(mean - scale * middle)
    return (codes + 8).flatten(-2).to(torch.uint8), torch.cat([scale, offset], -1).to(DTYPE)


def exact(value: Tensor) -> Tensor:
    """The numbers fp32 as DTYPE holds them."""
    return value.to(DTYPE).float()
