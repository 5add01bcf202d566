"""What a decoder layer computes between its matrix products, in plain torch: the twins of `triton_set.dense`.

Each takes and gives tensors of the model's dtype. The Triton kernels compute in fp32 and round once; these round
where torch does. Letters as in `reference`; N channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}
"""By the name that a kernel knows them by."""


class Norm(NamedTuple):
    """Root-mean-square normalisation: `weight` [N] of any dtype, in which the twin computes, and `eps`."""

    weight: Tensor
    eps: float


HeadNorms = tuple[Norm, Norm]
"""The norms of each query head and of each key head, with weights [D]."""


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """x [..., N], each over the root of its mean square, times the weight -> the same shape and dtype."""
    weight, eps = norm
    if x.device.type == "cpu" and x.dtype is weight.dtype is torch.float32:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        mean_square = torch.addcmul(_on_host(eps), length, length, value=1.0 / x.shape[-1])
        return (x * mean_square.rsqrt_()).mul_(weight)
    return functional.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)


@cache
def _on_host(number: float) -> Tensor:
    """A number that need not become a tensor at each call."""
    return torch.tensor(number)


def add_norm(x: Tensor, residual: Tensor, after: Norm, before: Norm | None = None) -> tuple[Tensor, Tensor]:
    """The sum of `residual` [..., N] and x, which is normed `before` where that is given, and the sum normed."""
    total = residual + (x if before is None else rms_norm(x, before))
    return total, rms_norm(total, after)


def norm_add(x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
    """`residual` [..., N] plus x normed."""
    return residual + rms_norm(x, norm)


def rotate(
    heads: Tensor,
    counts: tuple[int, int],
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    norms: HeadNorms | None = None,
) -> Tensor:
    """Rotary embedding of the query and key heads among `heads` [B, T, H, D], which are the first `counts` of them.

    cos and sin [B, T, R] are of the angle that each of the first R channels turns by; the other channels stay. Channel
    i makes a pair with i + R / 2 or, `interleaved`, 2 i with 2 i + 1. Heads are normed first where norms are given.
    Returns [B, T, H_Q + H_KV, D].
    """
    turned = heads.narrow(2, 0, sum(counts))
    if norms is not None:
        parts = zip(turned.split(counts, 2), norms, strict=True)
        turned = torch.cat([rms_norm(part, norm) for part, norm in parts], 2)
    width = cos.shape[-1]
    front = turned if width == turned.shape[-1] else turned[..., :width]
    if interleaved:
        partner = torch.stack([-front[..., 1::2], front[..., ::2]], -1).flatten(-2)
    else:
        first, second = front.chunk(2, -1)
        partner = torch.cat([-second, first], -1)
    out = torch.addcmul(front * cos.unsqueeze(2), partner, sin.unsqueeze(2)).to(heads.dtype)
    return out if front is turned else torch.cat([out, turned[..., width:]], -1)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """The activation of the first half of `gate_up` [..., 2 N] times the second half -> [..., N]."""
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[activation](gate) * up


class AddNorm(Protocol):
    """`add_norm`."""

    def __call__(
        self, x: Tensor, residual: Tensor, after: Norm, before: Norm | None = None
    ) -> tuple[Tensor, Tensor]: ...


class Rotate(Protocol):
    """`rotate`."""

    def __call__(
        self,
        heads: Tensor,
        counts: tuple[int, int],
        cos: Tensor,
        sin: Tensor,
        interleaved: bool = False,
        norms: HeadNorms | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DenseKernels:
    """What a fused module computes with: the functions of this module, or kernels of the same names."""

    name: str
    rms_norm: Callable[[Tensor, Norm], Tensor]
    add_norm: AddNorm
    norm_add: Callable[[Tensor, Tensor, Norm], Tensor]
    rotate: Rotate
    gated: Callable[[Tensor, str], Tensor]


TORCH_DENSE = DenseKernels("torch", rms_norm, add_norm, norm_add, rotate, gated)
