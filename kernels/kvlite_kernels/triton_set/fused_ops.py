"""The operations of fused modules in Triton, one launch each."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kvlite_kernels.fused_ops import FusedOps, HeadNorms, Norm
from kvlite_kernels.nf4 import FourBit
from kvlite_kernels.triton_set import elementwise, products
from kvlite_kernels.triton_set.tiles import Processor

_CHANNELS_PER_WARP = 256  # eight for each thread: 16 bytes in half precision
_MOST_WARPS = 16
_BLOCK = 1024


class TritonOps(FusedOps):
    """Kernels for a `processor`."""

    name = "triton"

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """As the reference."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _join(x, None, None, norm, None, out)
        return out

    def add_norm(self, x: Tensor, residual: Tensor, after: Norm, before: Norm | None = None) -> tuple[Tensor, Tensor]:
        """As the reference."""
        total, out = (torch.empty(x.shape, dtype=residual.dtype, device=x.device) for _ in range(2))
        _join(x, residual, before, after, total, out)
        return total, out

    def norm_add(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """As the reference."""
        total = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
        _join(x, residual, norm, None, total, None)
        return total

    def rotate(
        self, heads: Tensor, counts: tuple[int, int], cos: Tensor, sin: Tensor, norms: HeadNorms | None = None
    ) -> Tensor:
        """As the reference."""
        rows, num_tokens, _, dim = heads.shape
        count, angles = sum(counts), cos.shape[-1] // 2
        assert heads.stride(-1) == 1 and cos.stride() == sin.stride()
        pad, rest = triton.next_power_of_2(angles), dim - 2 * angles
        tile = max(1, 2 * _CHANNELS_PER_WARP // triton.next_power_of_2(dim))
        out = torch.empty(rows, num_tokens, count, dim, dtype=heads.dtype, device=heads.device)
        of_q, of_k = norms or (Norm(cos, 0.0), Norm(cos, 0.0))
        elementwise.rotate_heads[(rows * num_tokens, triton.cdiv(count, tile))](
            heads, cos, sin, out, of_q.weight, of_k.weight, of_q.eps, of_k.eps,
            num_tokens, *heads.stride()[:3], 0 if len(cos) == 1 else cos.stride(0), cos.stride(1), cos.stride(2),
            QUERY_HEADS=counts[0], COUNT=count, D=dim, ANGLES=angles,
            HEADS=tile, PAD=pad, PAD_REST=triton.next_power_of_2(rest) if rest else 0, HAS_NORMS=norms is not None,
            num_warps=1, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
        return out

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """As the reference."""
        rows, size = _rows(gate_up), gate_up.shape[-1] // 2
        out = torch.empty(*gate_up.shape[:-1], size, dtype=gate_up.dtype, device=gate_up.device)
        elementwise.gate[(len(rows), triton.cdiv(size, _BLOCK))](
            rows, out, rows.stride(0), SIZE=size, BLOCK=_BLOCK, ACTIVATION=activation,
            num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
        return out

    def most_four_bit_rows(self, dtype: torch.dtype) -> int:
        """As the reference."""
        return products.most_rows(self.processor, dtype)

    def multiply_four_bit(self, x: Tensor, weight: FourBit, bias: Tensor | None) -> Tensor:
        """As the reference."""
        return products.multiply(x, weight, bias, self.processor)


def _join(
    x: Tensor,
    residual: Tensor | None,
    before: Norm | None,
    after: Norm | None,
    total: Tensor | None,
    out: Tensor | None,
) -> None:
    size = x.shape[-1]
    pad = triton.next_power_of_2(size)
    rows = _rows(x)
    added = rows if residual is None else _rows(residual)
    elementwise.join_residual[(len(rows),)](
        rows, added, rows if before is None else before.weight, rows if after is None else after.weight,
        rows if total is None else total, rows if out is None else out,
        0.0 if before is None else before.eps, 0.0 if after is None else after.eps, rows.stride(0), added.stride(0),
        SIZE=size, PAD=pad,
        HAS_BEFORE=before is not None, HAS_RESIDUAL=residual is not None, HAS_AFTER=after is not None,
        num_warps=max(1, min(_MOST_WARPS, pad // _CHANNELS_PER_WARP)), num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """x [..., N] as [rows, N], whose rows lie in one piece."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
