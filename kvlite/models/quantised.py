"""Weights in 4 or 8 bits through bitsandbytes: its settings, and linear maps that multiply few rows with our kernels.

These hold bitsandbytes' own parameters, so whatever looks for those finds them; only scales that were themselves
quantised are unpacked, to fp32, which costs 3 bytes for 64 weights and lets matrices be joined.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert

from kvlite.errors import UsageError
from kvlite.models.text_part import text_part_arguments
from kvlite_kernels.fused_ops import FusedOps
from kvlite_kernels.nf4 import FourBit, can_join, is_served

_BLOCK = 64  # weights that share a scale
_TILE = 32  # rows that the packed kernel for CPUs takes at once


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype quantised matrices are multiplied in; bitsandbytes' own choice, float32, is slow and no more exact."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def quantisation(
    folder: Path, quant: str, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool
) -> BitsAndBytesConfig:
    """bitsandbytes' settings for the model in `folder`. Raises UsageError where bitsandbytes is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about kernels nobody asked for
    try:
        _bitsandbytes()
    except ImportError as error:
        raise UsageError(f"--quant {quant} needs bitsandbytes; pip install bitsandbytes accelerate") from error
    if quant == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4" if quant == "4bit" else quant,
        bnb_4bit_compute_dtype=compute_dtype(dtype),
        bnb_4bit_use_double_quant=quant == "4bit",
        llm_int8_skip_modules=_left_out(folder, trust_remote_code) if device.type == "cpu" else None,
    )


def _bitsandbytes() -> Any:
    """The package, which takes 3 s to import: only where it is asked for."""
    import bitsandbytes

    return bitsandbytes


def _left_out(folder: Path, trust_remote_code: bool) -> list[str] | None:
    """Matrices that stay as they are on a CPU, None where only transformers' own choice does.

    Of rows that are not whole blocks bitsandbytes' AVX-512 kernel makes wrong weights, and its packed one wants tiles.
    """
    config = text_part_arguments(folder).get("config") or AutoConfig.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    uneven = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (module.in_features % _BLOCK or module.out_features % _TILE)
    ]
    return uneven + get_keys_to_not_convert(model) if uneven else None


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
        self._multiply_rows = bitsandbytes.matmul_4bit

    @property
    def packed(self) -> FourBit:
        """The weights as operations take them."""
        state = self.weight.quant_state
        return FourBit(self.weight.data.view(self.out_features, -1), state.absmax, state.code, state.blocksize)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], multiplied in the map's dtype and given in x's."""
        rows = x.to(self.dtype).reshape(-1, self.in_features)
        if 1 <= len(rows) <= self.ops.most_four_bit_rows(self.dtype):
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
