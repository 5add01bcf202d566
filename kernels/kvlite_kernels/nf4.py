"""Products with 4-bit weights as bitsandbytes lays them out, NF4 or FP4, in plain torch: the reference for kernels.

Letters: M rows, K channels in, N channels out. A weight is code[c] * absmax of its block, where a block is `block`
neighbours in the order of [N, K]. A byte holds two neighbours, the first in its high half. Sums are fp32 at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ROWS = 32
"""Most rows that are multiplied from the packed weights; with more, products cost more than reading does."""

CHANNELS = 32
"""Channels that a thread takes at once, 16 bytes: a kernel wants their number to divide K and the block."""


@dataclass(frozen=True, slots=True)
class FourBit:
    """Weights [N, K]: `packed` uint8 [N, K / 2], `absmax` fp32 [N * K / block], `code` fp32 [16]."""

    packed: Tensor
    absmax: Tensor
    code: Tensor
    block: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], 2 * self.packed.shape[1]


def dequantise(weight: FourBit) -> Tensor:
    """The weights as fp32 [N, K]."""
    codes = torch.stack([weight.packed >> 4, weight.packed & 15], -1).view(-1, weight.block)
    return (weight.code[codes.int()] * weight.absmax[:, None]).view(weight.shape)


def multiply(x: Tensor, weight: FourBit, bias: Tensor | None) -> Tensor:
    """x [M, K] times the weights, transposed, and bias [N] added: [M, N] of x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.to(wide) @ dequantise(weight).to(wide).T
    return (out if bias is None else out + bias.to(wide)).to(x.dtype)


def is_served(shape: Sequence[int], block: int) -> bool:
    """True if kernels take weights of `shape` (N, K): no thread's channels may lie in two blocks or rows."""
    return len(shape) == 2 and shape[1] % CHANNELS == 0 and block % CHANNELS == 0 and shape[0] * shape[1] % block == 0


def can_join(shapes: Sequence[Sequence[int]], block: int) -> bool:
    """True if such weights, one after another, are those of one product: same K, and no block in two of them."""
    return len({k for _, k in shapes}) == 1 and all(n * k % block == 0 for n, k in shapes)
