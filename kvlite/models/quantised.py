"""Weights in 4 or 8 bits through bitsandbytes: its settings, and the models and matrices it must not be given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.base import get_keys_to_not_convert

from kvlite.errors import UnsupportedModel, UsageError

_BLOCK = 64  # weights that share a scale
_TILE = 32  # rows that the packed kernel for CPUs takes at once


def refuse_quantisation(folder: Path, config: Mapping[str, Any], quant: str) -> None:
    """Refuse what transformers would pass over: a quantisation it does not know, and one on top of another.

    Raises UnsupportedModel and UsageError.
    """
    of_model = config.get("quantization_config")
    if of_model is None:
        return
    method = of_model.get("quant_method") if isinstance(of_model, Mapping) else None
    if not isinstance(of_model, Mapping) or (method and not AutoHfQuantizer.supports_quant_method(of_model)):
        raise UnsupportedModel(f"{folder} is quantised by {method or of_model!r}, which transformers does not load")
    if quant != "none":
        raise UsageError(f"{folder} is quantised already ({method}); leave out --quant {quant}")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype quantised matrices are multiplied in; bitsandbytes' own choice, float32, is slow and no more exact."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def quantisation(
    folder: Path, quant: str, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool
) -> BitsAndBytesConfig:
    """bitsandbytes' settings for the model in `folder`. Raises UsageError where bitsandbytes is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about kernels nobody asked for
    try:
        import bitsandbytes  # noqa: F401  (3 s to import: only where asked for)
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


def _left_out(folder: Path, trust_remote_code: bool) -> list[str] | None:
    """Matrices that stay as they are on a CPU, None where only transformers' own choice does.

    Of rows that are not whole blocks bitsandbytes' AVX-512 kernel makes wrong weights, and its packed one wants tiles.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    uneven = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (module.in_features % _BLOCK or module.out_features % _TILE)
    ]
    return uneven + get_keys_to_not_convert(model) if uneven else None
