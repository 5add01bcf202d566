"""Files to weights: loads a folder with transformers, optionally in 4 or 8 bits, and passes it through the gate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from kvlite.errors import BrokenModel, DoesNotFit, KvliteError, ModelError, OutOfMemory, UnsupportedModel, UsageError
from kvlite.memory.shape import ModelShape
from kvlite.models.gate import admit
from kvlite.models.hybrid import HybridState
from kvlite.models.loaded import LoadedModel
from kvlite.models.seam import register

QUANTS = ("none", "8bit", "4bit", "nf4", "fp4")
"""4bit is nf4 with its scales quantised too."""

_PARSER_ERRORS = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError, SafetensorError)
"""What transformers and the parsers below it raise on files they cannot use."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load: `dtype` and `device` may be `auto`; `quant` one of QUANTS."""

    dtype: str = "auto"
    device: str = "auto"
    quant: str = "none"
    trust_remote_code: bool = False
    allow_pickle: bool = False


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU. Raises UsageError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}; give auto, cpu, cuda, cuda:N or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise UsageError(f"device {name!r} is not there; give --device auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA device(s)")
    return torch.device(device.type, device.index or 0) if device.type == "cuda" else device


def load(folder: Path, config: Mapping[str, Any], options: LoadOptions) -> LoadedModel:
    """Load the model in `folder` whose config.json is `config`.

    Raises UnsupportedModel where kvlite cannot bound the family, BrokenModel on damaged files, OutOfMemory where the
    weights do not fit, UsageError on an unknown device.
    """
    shape = ModelShape.from_config(config)
    device = pick_device(options.device)
    dtype = _dtype(options.dtype, shape, device)
    shape = ModelShape.from_config(config, dtype=str(dtype).removeprefix("torch."))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    register()
    tokenizer = _tokenizer(folder, options)
    model = _model(folder, options, dtype, device)
    text_config = model.config.get_text_config()
    state = HybridState(text_config) if shape.has_state else None
    _require_vocabulary(model.config, tokenizer)
    return admit(LoadedModel(model, tokenizer, shape, dtype, device, options.quant, state=state))


def _dtype(name: str, shape: ModelShape, device: torch.device) -> torch.dtype:
    wanted = (
        shape.dtype if name == "auto" else {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(name, name)
    )
    if wanted not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"unknown dtype {name!r}; give auto, float32, bfloat16 or float16")
    if wanted == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        if name == "auto":
            return torch.float16  # Turing has no bfloat16 arithmetic
        raise UsageError("this GPU has no bfloat16 arithmetic; give --dtype float16")
    dtype = getattr(torch, wanted)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _tokenizer(folder: Path, options: LoadOptions) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code, local_files_only=True
        )
    except _PARSER_ERRORS as error:
        raise BrokenModel(f"the tokenizer in {folder} cannot be loaded: {_first_line(error)}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _model(folder: Path, options: LoadOptions, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "eager",
        "trust_remote_code": options.trust_remote_code,
        "local_files_only": True,
        "use_safetensors": None if options.allow_pickle else True,
    }
    if device.type == "cuda" or options.quant != "none":
        arguments["device_map"] = {"": device}
    if options.quant != "none":
        arguments["quantization_config"] = _quantization(options.quant, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the weights do not fit on {device}; try --4bit or a smaller model") from error
    except MemoryError as error:
        raise DoesNotFit("the weights do not fit in this machine's memory; try a smaller model") from error
    except _PARSER_ERRORS as error:
        raise _loading_error(folder, error) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise BrokenModel(f"the weights in {folder} lack {len(missing)} tensors, {missing[0]} first; download it again")
    assert isinstance(model, PreTrainedModel)
    if "device_map" not in arguments:
        torch.nn.Module.to(model, device)
    model.eval()
    return model


def _quantization(quant: str, dtype: torch.dtype) -> Any:
    """bitsandbytes' settings; its own defaults, fp4 and float32 arithmetic, are slow and less exact."""
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401  (3 s to import: only where asked for)
    except ImportError as error:
        raise UsageError(f"--quant {quant} needs bitsandbytes; pip install bitsandbytes") from error
    if quant == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if dtype != torch.float32 else torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4" if quant == "4bit" else quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=quant == "4bit",
    )


def _loading_error(folder: Path, error: Exception) -> KvliteError:
    text = _first_line(error)
    if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
        return UnsupportedModel(
            f"{folder} is not a causal language model that transformers knows; choose another model"
        )
    if "trust_remote_code" in str(error):
        return ModelError(f"{folder} runs code of its own; read it, then give --trust-remote-code")
    if isinstance(error, OSError) and "safetensors" in str(error):
        return BrokenModel(f"{folder} has no safetensors weights; give --allow-pickle if you trust its .bin files")
    return BrokenModel(f"the weights in {folder} cannot be loaded: {text}")


def _require_vocabulary(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    held = config.get_text_config().vocab_size
    if len(tokenizer) and max(tokenizer.get_vocab().values(), default=0) >= held:
        raise BrokenModel(
            f"the tokenizer has ids up to {len(tokenizer) - 1} but the model only {held}; download it again"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
