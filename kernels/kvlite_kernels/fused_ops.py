"""The operations of fused modules: between the matrix products of a decoder layer, and products with packed weights.

Each takes and gives tensors of the model's dtype. Triton's compute in fp32 and round once; these round where torch
does. Letters as in `reference`; N channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kvlite_kernels import blocks, nf4
from kvlite_kernels.blocks import Blocks
from kvlite_kernels.nf4 import FourBit

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
"""By the name that a kernel knows them by."""


class Norm(NamedTuple):
    """Root-mean-square normalisation: `weight` [N] of any dtype, in which torch computes, and `eps`."""

    weight: Tensor
    eps: float


HeadNorms = tuple[Norm, Norm]
"""The norms of each query head and of each key head, with weights [D]."""


class FusedOps:
    """The operations in plain torch: the reference, whose methods kernels override."""

    name = "torch"

    _made: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """x [..., N], each over the root of its mean square, times the weight -> the same shape and dtype."""
        weight, eps = norm
        if x.device.type == "cpu" and x.dtype is weight.dtype is torch.float32:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            mean_square = torch.addcmul(_on_host(eps), length, length, value=1.0 / x.shape[-1])
            return (x * mean_square.rsqrt_()).mul_(weight)
        if x.device.type == "cpu" and x.dtype is weight.dtype:  # half precision is rounded where transformers rounds it
            return functional.rms_norm(x, weight.shape, None, eps).mul_(weight)
        return functional.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)

    def add_norm(self, x: Tensor, residual: Tensor, after: Norm, before: Norm | None = None) -> tuple[Tensor, Tensor]:
        """The sum of `residual` [..., N] and x, which is normed `before` where that is given, and the sum normed."""
        total = residual + x if before is None else self.norm_add(x, residual, before)
        return total, self.rms_norm(total, after)

    def norm_add(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """`residual` [..., N] plus x normed."""
        return residual + self.rms_norm(x, norm)

    def rotate(
        self, heads: Tensor, counts: tuple[int, int], cos: Tensor, sin: Tensor, norms: HeadNorms | None = None
    ) -> Tensor:
        """Rotary embedding of the query and key heads among `heads` [B, T, H, D], the first `counts` of them.

        cos and sin [B, T, R] are of the angle that each of the first R channels turns by, channel i in a pair with
        i + R / 2; the other channels stay. Heads are normed first where norms are given. Returns [B, T, H_Q + H_KV, D].
        """
        rotated = heads.narrow(2, 0, sum(counts))
        if norms is not None:
            parts = zip(rotated.split(counts, 2), norms, strict=True)
            rotated = torch.cat([self.rms_norm(part, norm) for part, norm in parts], 2)
        width = cos.shape[-1]
        front = rotated if width == rotated.shape[-1] else rotated[..., :width]
        if front.device.type == "cpu" and front.dtype is not torch.float32:
            cos, sin = self._tables(cos, sin)
            out = (front * cos).add_(front.roll(width // 2, -1).mul_(sin))
        else:
            first, second = front.chunk(2, -1)
            out = torch.addcmul(front * cos.unsqueeze(2), torch.cat([-second, first], -1), sin.unsqueeze(2))
        out = out.to(heads.dtype)
        return out if front is rotated else torch.cat([out, rotated[..., width:]], -1)

    def _tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, R] for each head, the first half of sin negative; made once for all layers of a step."""
        made = self._made
        if made is None or made[0] is not cos or made[1] is not sin:
            first, second = sin.unsqueeze(2).chunk(2, -1)
            made = self._made = cos, sin, cos.unsqueeze(2), torch.cat([-first, second], -1)
        return made[2:]

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """The activation of the first half of `gate_up` [..., 2 N] times the second half -> [..., N]."""
        gate, up = gate_up.chunk(2, -1)
        return ACTIVATIONS[activation](gate) * up

    def most_four_bit_rows(self, dtype: torch.dtype) -> int:
        """Most rows of `dtype` that `multiply_four_bit` is faster for than bitsandbytes; 0 leaves it all of them."""
        return 0

    def multiply_four_bit(self, x: Tensor, weight: FourBit, bias: Tensor | None) -> Tensor:
        """x [M, K] times the weights, transposed, and bias [N] added: [M, N] of x's dtype."""
        return nf4.multiply(x, weight, bias)

    def most_block_rows(self, dtype: torch.dtype) -> int:
        """Most rows of `dtype` that `multiply_blocks` is faster for than unpacking; 0 unpacks for all of them."""
        return 0

    def multiply_blocks(self, x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
        """x [M, K] times weights in GGUF blocks, transposed, and bias [N] added: [M, N] of x's dtype."""
        return blocks.multiply(x, weight, bias)


TORCH_OPS = FusedOps()


@cache
def _on_host(number: float) -> Tensor:
    """A number that need not become a tensor at each call."""
    return torch.tensor(number)
