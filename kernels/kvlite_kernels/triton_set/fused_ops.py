"""The operations of fused modules in Triton, one launch each; two for products cut into parts."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kvlite_kernels.blocks import SIZES, Blocks
from kvlite_kernels.fused_ops import FusedOps, HeadNorms, Norm
from kvlite_kernels.nf4 import MAX_ROWS, FourBit
from kvlite_kernels.triton_set import blocks, elementwise, nf4
from kvlite_kernels.triton_set.tiles import Processor, block_tile, lacking_dtype, product_tile

_CHANNELS_PER_WARP = 256  # eight for each thread: 16 bytes in half precision
_MOST_WARPS = 16
_BLOCK = 1024

PROGRAMS_PER_PROCESSOR = 4
MAX_PARTS = 16
"""Most programs that share the channels of one output."""

_RUN, _RUN_BYTES = 32, 16  # weights of a run of a GGUF block, and the bytes of their halves
_SUMMED = 256  # outputs of one program that adds parts


class TritonOps(FusedOps):
    """Kernels for a `processor`; `four_bit`: products with 4-bit weights, too."""

    name = "triton"

    def __init__(self, processor: Processor, four_bit: bool = True) -> None:
        self.processor, self.four_bit = processor, four_bit

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """As the reference."""
        return _join(x, None, None, norm)[1]

    def add_norm(self, x: Tensor, residual: Tensor, after: Norm, before: Norm | None = None) -> tuple[Tensor, Tensor]:
        """As the reference."""
        return _join(x, residual, before, after)

    def norm_add(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """As the reference."""
        return _join(x, residual, norm, None)[0]

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
        """As the reference; on Turing one, since Triton multiplies matrices without tensor cores there."""
        if not self.four_bit or lacking_dtype(self.processor.capability, dtype) is not None:
            return 0
        return 1 if 0 < self.processor.capability < 80 else MAX_ROWS

    def multiply_four_bit(self, x: Tensor, weight: FourBit, bias: Tensor | None) -> Tensor:
        """As the reference, for at most `most_four_bit_rows` rows of weights that `nf4.is_served` admits."""
        rows, (outputs, channels) = x.shape[0], weight.shape
        assert 1 <= rows <= MAX_ROWS and x.shape[1] == channels
        x = x.contiguous()
        tile = product_tile(self.processor.capability, rows)
        blocks = triton.cdiv(outputs, tile.rows)
        parts, bytes_per_part = _parts(blocks, channels // 2, tile.columns, self.processor.count)
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
        found = out if parts == 1 else torch.empty(parts, rows, outputs, dtype=torch.float32, device=x.device)
        added = None if parts > 1 else bias
        tensors = (weight.packed, weight.absmax, weight.code, found if added is None else added, found)
        sizes = (outputs, channels // 2, bytes_per_part)
        constants = {"HALF_BLOCK": weight.block // 2, "OUTPUTS": tile.rows, "BYTES": tile.columns}
        constants["HAS_BIAS"] = added is not None
        if rows == 1:
            words = x.view(torch.int64 if x.dtype == torch.float32 else torch.int32)
            kind = str(x.dtype).removeprefix("torch.")
            nf4.multiply_one[(blocks, parts)](words, *tensors, *sizes, KIND=kind, **constants, **tile.options)
        else:
            padded = 16 if rows <= 16 else MAX_ROWS
            nf4.multiply_many[(blocks, parts)](x, *tensors, rows, *sizes, ROWS=padded, **constants, **tile.options)
        return out if parts == 1 else _added(found, bias, out)

    def most_block_rows(self, dtype: torch.dtype) -> int:
        """As the reference; on Turing one, as of 4-bit weights."""
        if lacking_dtype(self.processor.capability, dtype) is not None:
            return 0
        return 1 if 0 < self.processor.capability < 80 else MAX_ROWS

    def multiply_blocks(self, x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
        """As the reference, for at most `most_block_rows` rows."""
        rows, (outputs, channels) = x.shape[0], weight.shape
        assert 1 <= rows <= MAX_ROWS and x.shape[1] == channels and weight.data.is_contiguous()
        x = x.contiguous()
        tile = block_tile(self.processor.capability, rows)
        runs = tile.columns // _RUN_BYTES
        programs = triton.cdiv(outputs, tile.rows)
        parts, runs_per_part = _parts(programs, channels // _RUN, runs, self.processor.count)
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
        found = out if parts == 1 else torch.empty(parts, rows, outputs, dtype=torch.float32, device=x.device)
        added = None if parts > 1 else bias
        tensors = (x, weight.data, weight.data.view(torch.float16), found if added is None else added, found)
        sizes = (outputs, weight.data.shape[1], channels // _RUN, runs_per_part)
        constants = {"KIND": weight.kind, "BYTES": SIZES[weight.kind][1], "OUTPUTS": tile.rows, "RUNS": runs}
        constants["HAS_BIAS"] = added is not None
        if rows == 1:
            blocks.multiply_blocks_one[(programs, parts)](*tensors, *sizes, **constants, **tile.options)
        else:
            constants["ROWS"] = 16 if rows <= 16 else MAX_ROWS
            blocks.multiply_blocks_many[(programs, parts)](*tensors, rows, *sizes, **constants, **tile.options)
        return out if parts == 1 else _added(found, bias, out)


def _join(x: Tensor, residual: Tensor | None, before: Norm | None, after: Norm | None) -> tuple[Tensor, Tensor]:
    """The sum of x, normed `before`, and the residual, and that sum normed `after`; x itself for what is not asked."""
    size, rows = x.shape[-1], _rows(x)
    pad, nothing = triton.next_power_of_2(size), Norm(rows, 0.0)
    added, total, out = rows, x, x
    if residual is not None:
        added, total = _rows(residual), torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    if after is not None:
        out = torch.empty(x.shape, dtype=total.dtype, device=x.device)
    first, last = before or nothing, after or nothing
    elementwise.join_residual[(len(rows),)](
        rows, added, first.weight, last.weight, total, out, first.eps, last.eps, rows.stride(0), added.stride(0),
        SIZE=size, PAD=pad,
        HAS_BEFORE=before is not None, HAS_RESIDUAL=residual is not None, HAS_AFTER=after is not None,
        num_warps=max(1, min(_MOST_WARPS, pad // _CHANNELS_PER_WARP)), num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return total, out


def _rows(x: Tensor) -> Tensor:
    """x [..., N] as [rows, N], whose rows lie in one piece."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _added(parts: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The sum of `parts` fp32 [P, M, N] and the bias, in `out` [M, N]."""
    rows, outputs = out.shape
    nf4.add_parts[(rows, triton.cdiv(outputs, _SUMMED))](
        parts, out if bias is None else bias, out, outputs, len(parts),
        OUTPUTS=_SUMMED, HAS_BIAS=bias is not None, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _parts(programs: int, row: int, tile: int, processors: int) -> tuple[int, int]:
    """Number of parts that the channels are cut into to fill the device, and the size of each, whole tiles.

    `row` and `tile` are in bytes, or whatever a kernel counts channels in.
    """
    wanted = min(MAX_PARTS, -(-PROGRAMS_PER_PROCESSOR * processors // programs))
    tiles = -(-row // tile)
    per_part = -(-tiles // max(1, min(wanted, tiles))) * tile
    return -(-row // per_part), per_part
