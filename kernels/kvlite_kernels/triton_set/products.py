"""Launching the products with weights in 4 bits, and the table of their tiles.

Chosen from what the compiler says of registers, shared memory and instructions; nothing was timed on a device yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kvlite_kernels.nf4 import MAX_ROWS, FourBit
from kvlite_kernels.triton_set import nf4
from kvlite_kernels.triton_set.tiles import Processor, lacking_dtype

PROGRAMS_PER_PROCESSOR = 4
MAX_PARTS = 16
"""Most programs that share the channels of one output."""

_SUMMED = 256  # outputs of one program that adds parts


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs and packed bytes of each that a program takes at once, and how it is compiled."""

    outputs: int
    bytes: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """Options of the compiler. Fused multiply-adds are given, because their default changes with Triton."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def tile_of(capability: int, rows: int) -> Tile:
    """The tile for products of `rows` rows; capability 0 is the interpreter."""
    if capability == 0:
        return Tile(16, 64, 1, 1)
    if rows == 1:
        return Tile(8, 512, 4, 1)
    return Tile(64, 64, 4, 3)


def most_rows(processor: Processor, dtype: torch.dtype) -> int:
    """Most rows of `dtype` that `multiply` takes, 0 where it takes none.

    On Turing Triton multiplies matrices without tensor cores, so that more than one row is left to others.
    """
    if lacking_dtype(processor.capability, dtype) is not None:
        return 0
    return 1 if 0 < processor.capability < 80 else MAX_ROWS


def multiply(x: Tensor, weight: FourBit, bias: Tensor | None, processor: Processor) -> Tensor:
    """x [M, K] -> [M, N], as `nf4.multiply`, for at most `most_rows` rows of weights that `nf4.is_served` admits."""
    rows, (outputs, channels) = x.shape[0], weight.shape
    assert 1 <= rows <= MAX_ROWS and x.shape[1] == channels
    x = x.contiguous()
    tile = tile_of(processor.capability, rows)
    blocks = triton.cdiv(outputs, tile.outputs)
    parts, bytes_per_part = _parts(blocks, channels // 2, tile.bytes, processor.count)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    found = out if parts == 1 else torch.empty(parts, rows, outputs, dtype=torch.float32, device=x.device)
    added = None if parts > 1 else bias
    tensors = (weight.packed, weight.absmax, weight.code, found if added is None else added, found)
    sizes = (outputs, channels // 2, bytes_per_part)
    constants = {
        "HALF_BLOCK": weight.block // 2,
        "OUTPUTS": tile.outputs,
        "BYTES": tile.bytes,
        "HAS_BIAS": added is not None,
    }
    if rows == 1:
        words = x.view(torch.int64 if x.dtype == torch.float32 else torch.int32)
        kind = str(x.dtype).removeprefix("torch.")
        nf4.multiply_one[(blocks, parts)](words, *tensors, *sizes, KIND=kind, **constants, **tile.options)
    else:
        padded = 16 if rows <= 16 else MAX_ROWS
        nf4.multiply_many[(blocks, parts)](x, *tensors, rows, *sizes, ROWS=padded, **constants, **tile.options)
    if parts > 1:
        nf4.add_parts[(rows, triton.cdiv(outputs, _SUMMED))](
            found, out if bias is None else bias, out, outputs, parts,
            OUTPUTS=_SUMMED, HAS_BIAS=bias is not None, num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def _parts(blocks: int, row_bytes: int, tile_bytes: int, processors: int) -> tuple[int, int]:
    """Number of parts that the channels are cut into to fill the device, and the bytes of each, whole tiles."""
    wanted = min(MAX_PARTS, -(-PROGRAMS_PER_PROCESSOR * processors // blocks))
    tiles = -(-row_bytes // tile_bytes)
    per_part = -(-tiles // max(1, min(wanted, tiles))) * tile_bytes
    return -(-row_bytes // per_part), per_part
