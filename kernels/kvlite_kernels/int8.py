"""The torch twin of products with weights in 8 bits and one scale per output, and what a CPU multiplies them with.

Letters: M rows, K channels in, N channels out. A weight is code * scale of its output. Sums are fp32 at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

WIDENED_ELEMENTS = 1 << 22
"""Most weights that are widened at once."""

LARGEST = 127


@dataclass(frozen=True, slots=True)
class EightBit:
    """Weights [N, K]: `codes` int8 [N, K] in [-127, 127], `scale` fp32 [N]."""

    codes: Tensor
    scale: Tensor


class CodedProducts(Protocol):
    """`multiply` as a device does it, for 1 to `most_rows` rows."""

    @property
    def most_rows(self) -> int: ...

    def __call__(self, x: Tensor, weight: EightBit) -> Tensor:
        """As `multiply`."""


def quantise(weight: Tensor) -> EightBit:
    """The nearest codes of weights [N, K] of any floating-point dtype; the largest of each output is exact."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), device=weight.device)
    for here in _tiles(weight.shape):
        wide = weight[here].float()
        scale[here] = wide.abs().amax(-1) / LARGEST
        codes[here] = (wide / scale[here].clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8)
    return EightBit(codes, scale)


def multiply(x: Tensor, weight: EightBit) -> Tensor:
    """x [M, K] times the weights, transposed: [M, N] of x's dtype; a part of the weights is widened at a time."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty(len(x), len(weight.codes), dtype=x.dtype, device=x.device)
    for here in _tiles(weight.codes.shape):
        out[:, here] = (x.to(wide) @ weight.codes[here].to(wide).T * weight.scale[here]).to(x.dtype)
    return out


@dataclass(frozen=True, slots=True)
class HostProducts:
    """`CodedProducts` by torch's own kernel for CPUs, which takes x and scales in bfloat16."""

    most_rows: int = 4

    def __call__(self, x: Tensor, weight: EightBit) -> Tensor:
        """x [M, K] -> [M, N]."""
        scale = weight.scale.to(torch.bfloat16)
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), weight.codes, scale).to(x.dtype)


def _tiles(shape: torch.Size) -> list[slice]:
    """The outputs of weights of `shape`, as many at once as are widened."""
    rows = max(1, WIDENED_ELEMENTS // shape[1])
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]
