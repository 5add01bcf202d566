"""Linear maps over 4-bit weights, in bitsandbytes' packing, that multiply few rows with kvlite's kernels.

They hold bitsandbytes' own parameters, so whatever looks for those finds them; only scales that were themselves
quantised are unpacked, to fp32, which costs 3 bytes for 64 weights and lets matrices be joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kvlite_kernels.fused_ops import FusedOps
from kvlite_kernels.nf4 import FourBit, can_join, is_served


class FourBitLinear(nn.Module):
    """A linear map over packed weights [N * K / 2, 1] and fp32 scales: few rows by `ops`, more by bitsandbytes.

    `like` is bitsandbytes' state of such weights, of which the code book and the size of blocks are taken.
    """

    bias: Tensor | None

    def __init__(
        self, packed: Tensor, absmax: Tensor, like: Any, bias: Tensor | None, dtype: torch.dtype, ops: FusedOps
    ) -> None:
        bitsandbytes = _bitsandbytes()

        super().__init__()
        self.in_features: int = like.shape[1]
        self.out_features = 2 * packed.numel() // self.in_features
        state = bitsandbytes.functional.QuantState(
            absmax=absmax,
            shape=torch.Size((self.out_features, self.in_features)),
            code=like.code,
            blocksize=like.blocksize,
            quant_type=like.quant_type,
            dtype=like.dtype,
        )
        self.weight: Any = bitsandbytes.nn.Params4bit(
            packed,
            False,
            state,
            like.blocksize,
            compress_statistics=False,
            quant_type=like.quant_type,
            bnb_quantized=True,
        )
        self.bias = None if bias is None else nn.Parameter(bias.data.to(dtype), requires_grad=False)
        self.dtype = dtype
        self.ops = ops
        self._most_rows = ops.most_four_bit_rows(dtype)
        self._multiply_rows = bitsandbytes.matmul_4bit

    @property
    def packed(self) -> FourBit:
        """The weights as operations take them."""
        state = self.weight.quant_state
        return FourBit(self.weight.data.view(self.out_features, -1), state.absmax, state.code, state.blocksize)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], multiplied in the map's dtype and given in x's."""
        rows = x.to(self.dtype).reshape(-1, self.in_features)
        if 1 <= len(rows) <= self._most_rows:
            out = self.ops.multiply_four_bit(rows, self.packed, self.bias)
        else:
            out = self._multiply_rows(rows, self.weight, bias=self.bias, quant_state=self.weight.quant_state)
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)


def our_form(module: Any, ops: FusedOps) -> FourBitLinear | None:
    """A map of bitsandbytes as ours, over the same weights; None of what `ops` cannot multiply with."""
    if type(module).__name__ != "Linear4bit" or not type(module).__module__.startswith("bitsandbytes."):
        return None
    weight, dtype = module.weight, module.compute_dtype
    state = getattr(weight, "quant_state", None)
    if state is None or dtype is None or ops.most_four_bit_rows(dtype) == 0:
        return None
    is_plain = weight.dtype == torch.uint8 and not getattr(state, "packing_format_for_cpu", False)
    if not is_plain or not is_served(state.shape, state.blocksize):
        return None
    absmax = state.absmax
    if state.state2 is not None:
        absmax = _bitsandbytes().functional.dequantize_blockwise(absmax, state.state2) + state.offset
    return FourBitLinear(weight.data, absmax.float(), state, module.bias, dtype, ops)


def join_four_bit(parts: Sequence[Any]) -> FourBitLinear | None:
    """Maps of one kind as one, whose outputs stand one after another; their weights and scales become views of its own.

    None where they are not of one kind, or their weights one after another are not those of one.
    """
    if not all(type(part) is FourBitLinear for part in parts):
        return None
    maps, states = cast(Sequence[FourBitLinear], parts), [part.weight.quant_state for part in parts]
    kinds = {(state.quant_type, state.blocksize, part.dtype) for state, part in zip(states, maps, strict=True)}
    if len(kinds) > 1 or not can_join([state.shape for state in states], states[0].blocksize):
        return None
    packed = torch.cat([part.weight.data for part in maps])
    absmax = torch.cat([state.absmax for state in states])
    biases = [part.bias for part in maps if part.bias is not None]
    at = scale_at = 0
    for part, state in zip(maps, states, strict=True):
        size, scales = part.weight.numel(), state.absmax.numel()
        part.weight.data, state.absmax = packed[at : at + size], absmax[scale_at : scale_at + scales]
        at, scale_at = at + size, scale_at + scales
    bias = torch.cat([part.data for part in biases]) if biases else None
    return FourBitLinear(packed, absmax, states[0], bias, maps[0].dtype, maps[0].ops)


def _bitsandbytes() -> Any:
    """The package, which takes 3 s to import: where there are such maps it is imported already."""
    import bitsandbytes

    return bitsandbytes
