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
    """A linear map over a `Params4bit` whose scales are fp32: few rows by `ops`, more by bitsandbytes."""

    bias: Tensor | None

    def __init__(self, weight: Any, bias: Tensor | None, dtype: torch.dtype, ops: FusedOps) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.data.to(dtype), requires_grad=False)
        self.dtype = dtype
        self.ops = ops
        self._most_rows = ops.most_four_bit_rows(dtype)
        self.out_features, self.in_features = weight.quant_state.shape
        self._multiply_rows = _bitsandbytes().matmul_4bit

    @property
    def packed(self) -> FourBit:
        """The weights as kernels take them."""
        state = self.weight.quant_state
        return FourBit(self.weight.data.view(self.out_features, -1), state.absmax, state.code, state.blocksize)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], multiplied in the map's dtype and given in x's."""
        rows = x.to(self.dtype).reshape(-1, self.in_features)
        if 1 <= len(rows) <= self._most_rows:
            out = self.ops.multiply_four_bit(rows, self.packed, self.bias)
        else:
            out = cast(
                Tensor, self._multiply_rows(rows, self.weight, bias=self.bias, quant_state=self.weight.quant_state)
            )
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)


def fits(module: nn.Module, ops: FusedOps) -> bool:
    """True if the module is a map of bitsandbytes that `ops` can multiply with."""
    if type(module).__name__ != "Linear4bit" or not type(module).__module__.startswith("bitsandbytes."):
        return False
    found = cast(Any, module)
    state, dtype = getattr(found.weight, "quant_state", None), found.compute_dtype
    if state is None or dtype is None or ops.most_four_bit_rows(dtype) == 0:
        return False
    is_plain = found.weight.dtype == torch.uint8 and not getattr(state, "packing_format_for_cpu", False)
    return is_plain and is_served(state.shape, state.blocksize)


def taken_over(module: Any, ops: FusedOps) -> FourBitLinear:
    """The map of bitsandbytes as ours, over the same weights."""
    state = module.weight.quant_state
    absmax = state.absmax
    if state.state2 is not None:
        absmax = _bitsandbytes().functional.dequantize_blockwise(absmax, state.state2) + state.offset
    weight = _parameter(module.weight.data, absmax.float(), state, state.shape)
    return FourBitLinear(weight, module.bias, module.compute_dtype, ops)


def are_joinable(parts: Sequence[nn.Module]) -> bool:
    """True if these are maps of one kind whose weights, one after another, are those of one."""
    if not all(type(part) is FourBitLinear for part in parts):
        return False
    maps = cast(Sequence[FourBitLinear], parts)
    states = [part.weight.quant_state for part in maps]
    kinds = {(state.quant_type, state.blocksize, part.dtype) for state, part in zip(states, maps, strict=True)}
    return len(kinds) == 1 and can_join([state.shape for state in states], states[0].blocksize)


def join_four_bit(parts: Sequence[FourBitLinear]) -> FourBitLinear:
    """The maps as one, whose outputs stand one after another; their weights and scales become views of its own."""
    states = [part.weight.quant_state for part in parts]
    packed = torch.cat([part.weight.data.view(-1) for part in parts])
    absmax = torch.cat([state.absmax for state in states])
    biases = [part.bias for part in parts if part.bias is not None]
    bias = torch.cat([part.data for part in biases]) if biases else None
    at = scale_at = 0
    for part, state in zip(parts, states, strict=True):
        size, scales = part.weight.numel(), state.absmax.numel()
        part.weight.data = packed[at : at + size].view(part.weight.shape)
        state.absmax = absmax[scale_at : scale_at + scales]
        at, scale_at = at + size, scale_at + scales
    outputs = sum(part.out_features for part in parts)
    shape = torch.Size((outputs, parts[0].in_features))
    weight = _parameter(packed[:, None], absmax, states[0], shape)
    return FourBitLinear(weight, bias, parts[0].dtype, parts[0].ops)


def _parameter(packed: Tensor, absmax: Tensor, like: Any, shape: Sequence[int]) -> Any:
    """bitsandbytes' parameter over bytes [N * K / 2, 1] and fp32 scales, in the code of `like`."""
    bitsandbytes = _bitsandbytes()
    state = bitsandbytes.functional.QuantState(
        absmax=absmax,
        shape=torch.Size(shape),
        code=like.code,
        blocksize=like.blocksize,
        quant_type=like.quant_type,
        dtype=like.dtype,
    )
    return bitsandbytes.nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=like.blocksize,
        compress_statistics=False,
        quant_type=like.quant_type,
        bnb_quantized=True,
    )


def _bitsandbytes() -> Any:
    """The package, which takes 3 s to import: where there are such maps it is imported already."""
    import bitsandbytes

    return bitsandbytes
