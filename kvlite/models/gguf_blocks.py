"""The blocks of GGUF types as packed weights, and as plain numbers, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kvlite.gguf.packing import FOUR_BITS
from kvlite_kernels.blocks import BITS, SIZES, read, unpack
from kvlite_kernels.grid import GROUP
from kvlite_kernels.packed import Packed4, PackedPair

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def pack_blocks(parts: Iterable[Tensor], kind: str, outputs: int) -> Packed4 | PackedPair:
    """Pack rows of blocks uint8 [N, bytes], of which `parts` are some each, whole blocks of channels out.

    Q4_0, Q4_1 and Q4_K are packed in 4 bits, the others in two halves of 4. No more than a part of the `outputs` is
    held unpacked.
    """
    if kind in FOUR_BITS:
        return Packed4.stack((_four(rows, kind) for rows in parts), outputs)
    return PackedPair.stack((_pair(rows, kind) for rows in parts), outputs)


def numbers(rows: Tensor, kind: str) -> Tensor:
    """The numbers fp32 [N, K] of rows uint8 [N, bytes] of any type."""
    if kind in _STORED:
        return rows.view(_STORED[kind]).float()
    if kind in SIZES:
        return unpack(rows, kind)
    from gguf import GGMLQuantizationType  # it takes 0.3 s to import
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[kind]))


def _four(rows: Tensor, kind: str) -> Packed4:
    codes, scale, low = read(rows, kind)
    return Packed4.pack(codes, torch.stack([scale, low + 8 * scale], -1))


def _pair(rows: Tensor, kind: str) -> PackedPair:
    is_anew = kind == "Q6_K"  # its scales are of 16 neighbours
    codes, scale, low = _anew(unpack(rows, kind)) if is_anew else read(rows, kind)
    shift = 128 - 2 ** (
        (8 if is_anew else BITS[kind]) - 1
    )  # so that codes lie around 128, and what is rounded is small
    return PackedPair.pack(codes + shift, scale, low - shift * scale)


def _anew(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = weights.unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(-1) / 127).clamp_(min=1e-30)
    codes = groups.div_(scale.unsqueeze(-1)).round_().add_(128).to(torch.uint8)
    return codes.flatten(1), scale, -128 * scale
