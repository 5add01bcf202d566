"""Tiles that kernels work in, by compute capability and head dimensions: tables, nothing is tried out at run time.

Chosen from what the compiler says of registers and shared memory: a consumer card gives a block 99 KB (Turing 64 KB),
and what spills, or fits only once per multiprocessor, is slow. On Turing, Triton multiplies without tensor cores, so
tiles are small there. Nothing here was timed on a device yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvlite_kernels.backend import LayerSizes

MAX_DIM = 256
"""Widest key or value the kernels take."""

MAX_GROUP = 16
"""Most query heads of one KV head: the rows of one tensor-core tile."""

MAX_SPLITS = 64
"""Most programs that share one KV head's keys in decode."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A device that runs kernels: compute capability times ten (0: the interpreter) and number of multiprocessors."""

    capability: int
    count: int


INTERPRETER = Processor(0, 2)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns a program handles at once, and how it is compiled; `registers` is the most of a thread.

    Attention has queries in rows and keys in columns, 4-bit products outputs and packed bytes.
    """

    rows: int
    columns: int
    warps: int
    stages: int = 2
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """Options of the compiler. Fused multiply-adds are named because their default changes with Triton."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True, "maxnreg": self.registers}


def padded(dim: int) -> int:
    """A head dimension as tiles have it: a power of two, at least what a tensor-core instruction takes."""
    return max(16, 1 << (dim - 1).bit_length())


def decode_tile(capability: int, k_dim: int, v_dim: int, bits: int) -> Tile:
    """Of the decode kernel: 16 rows of queries, few keys, so that several programs share a multiprocessor."""
    wide = max(padded(k_dim), padded(v_dim))
    if 0 < capability < 80:
        return _decode_tile_of_turing(wide, bits)
    if bits and wide > 128:  # widening codes takes registers
        return Tile(16, 32, 4, 2, registers=168)
    return Tile(16, 64 if wide <= 64 else 32, 4, 3 if wide <= 128 else 2)


def _decode_tile_of_turing(wide: int, bits: int) -> Tile:
    """Products without tensor cores take registers, and 4 bits of 64 channels need few threads for wide loads."""
    if wide > 128:
        return Tile(16, 16, 8 if bits else 4)
    if wide > 64:
        return Tile(16, 16 if bits == 8 else 32, 4)
    return Tile(16, 32, 2 if bits == 4 else 4)


def prefill_tile(capability: int, k_dim: int, v_dim: int, noisy: bool, bits: int) -> Tile:
    """Of attention over a chunk; noise takes registers, and so do codes of 6 bits, and of 8 on Turing."""
    wide = max(padded(k_dim), padded(v_dim))
    if 0 < capability < 80:
        few = wide > 128 or noisy or (bits == 8 and wide > 64)
        return Tile(32, 16 if few else 32, 8)
    if wide <= 128:
        return Tile(64, 64 if wide <= 64 else 32, 8 if noisy or (bits == 6 and wide > 64) else 4)
    return Tile(32 if bits == 6 else 64, 32, 8)


def column_tile(capability: int, k_dim: int, noisy: bool, bits: int) -> Tile:
    """Of the sums over queries: keys stay, queries pass; noise and codes take registers."""
    wide = padded(k_dim)
    if 0 < capability < 80:
        return Tile(16, 32 if wide <= 128 else 16, 4)
    if wide <= 64 and not noisy:
        return Tile(64, 64, 4)
    if wide <= 128 and not noisy and not bits:
        return Tile(64, 64, 8)
    if wide > 128 and bits:
        return Tile(32, 32, 8, registers=128)
    return Tile(32, 64, 8, registers=128)


FINISH_TILE = Tile(16, 64, 4, registers=64)  # left alone, the compiler takes 40 and spills
"""Of the kernel that joins the parts of decode."""

CODE_TILE = Tile(4, 1, 4)
"""Of the kernel that codes vectors, in rows; coding takes registers."""

EVICT_TILE = Tile(1, 1024, 4)
"""Of the kernel that evicts, with slots in columns."""


def product_tile(capability: int, rows: int) -> Tile:
    """Of the products with 4-bit weights, for `rows` rows of x; capability 0 is the interpreter."""
    if capability == 0:
        return Tile(16, 64, 1, 1)
    return Tile(8, 512, 4, 1) if rows == 1 else Tile(64, 64, 4, 3)


def block_tile(capability: int, rows: int) -> Tile:
    """As `product_tile`, of products with GGUF blocks, whose codes take more registers to unpack."""
    if capability == 0:
        return Tile(16, 64, 1, 1)
    return Tile(8, 256, 4, 1) if rows == 1 else Tile(32, 32, 4, 2)


def lacking(capability: int, layer: LayerSizes, dtype: torch.dtype) -> str | None:
    """The reason kernels cannot serve such a layer, None where they can; capability 0 is the interpreter."""
    if max(layer.k_dim, layer.v_dim) > MAX_DIM:
        return f"heads of {max(layer.k_dim, layer.v_dim)} channels (at most {MAX_DIM})"
    if layer.group > MAX_GROUP:
        return f"{layer.group} query heads per KV head (at most {MAX_GROUP})"
    return lacking_dtype(capability, dtype)


def lacking_dtype(capability: int, dtype: torch.dtype) -> str | None:
    """The reason products of matrices cannot serve `dtype`, None where they can; capability 0 is the interpreter."""
    if capability == 0:
        return "bfloat16 in the interpreter (float32 or float16)" if dtype == torch.bfloat16 else None
    if dtype not in (torch.float16, torch.bfloat16):
        return f"{str(dtype).removeprefix('torch.')} (float16 or bfloat16)"
    if capability < 80 and dtype != torch.float16:
        return "bfloat16 before compute capability 8.0 (float16)"
    return None
