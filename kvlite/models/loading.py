"""Files to weights: loads a folder with transformers, optionally in 4 or 8 bits, verifies the model and fuses it."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from kvlite.cache.cache import refused_kernels
from kvlite.catalog.adapter import CONFIG as ADAPTER_CONFIG
from kvlite.catalog.adapter import adapter_folder
from kvlite.catalog.model_files import ModelFiles
from kvlite.errors import (
    DoesNotFit,
    OutOfMemory,
    UsageError,
    is_out_of_memory,
)  # fmt: skip
from kvlite.memory.format import dtype_name, human_bytes
from kvlite.memory.prediction import keeps_blocks, packed_bits, stays_packed, weight_term
from kvlite.memory.shape import ModelShape
from kvlite.models.adapter import merged
from kvlite.models.apart import set_apart
from kvlite.models.checks import check, check_once, circumstances
from kvlite.models.device import free_bytes, set_threads
from kvlite.models.file_pages import FilePages, give_back_freed
from kvlite.models.head_needs import fingerprint
from kvlite.models.hybrid import HybridState
from kvlite.models.kernel_trial import KernelTrials
from kvlite.models.loaded import LoadedModel
from kvlite.models.long_texts import for_long_texts
from kvlite.models.packed import packed_settings
from kvlite.models.quantised import quantisation
from kvlite.models.refusals import PARSER_ERRORS, refusal, require_tensors, require_vocabulary
from kvlite.models.text_part import text_part_arguments
from kvlite.models.tokenizer import read_tokenizer
from kvlite.options import ModelOptions
from kvlite.record.verdicts import Verdicts
from kvlite_kernels.backend import KernelsUnavailable
from kvlite_kernels.choice import choose_ops
from kvlite_kernels.fused_ops import FusedOps
from kvlite_kernels.trial.task import MODULES


def load(
    files: ModelFiles,
    options: ModelOptions,
    device: torch.device,
    store: Verdicts | None = None,
    trials: KernelTrials | None = None,
    *,
    is_for_short_texts: bool = False,
) -> LoadedModel:
    """Load a model from its files onto `device`; what `store` knows of it is not found out again.

    Kernels that are left open are those that `trials` finds right and faster, in torch without any. A model with rotary
    factors of two kinds turns by those for long texts, unless `is_for_short_texts`.

    Raises UnsupportedModel where kvlite cannot bound the family, BrokenModel on damaged files, DoesNotFit or
    OutOfMemory where the weights do not fit, UsageError on kernels that do not run there.
    """
    folder = files.folder
    shape = shape_on(files, dtype_name(options.dtype), device)
    if is_for_short_texts:
        shape = shape.for_short_texts()
    ops = _ops(options.kernels, device)
    room = _room(files, shape, options, device)
    if trials is not None:
        trials.begin(room)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    passed = [("", time.perf_counter())]
    tokenizer = load_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    give_back_freed()
    passed.append(("tokenizer", time.perf_counter()))
    set_threads(device)
    dtype: torch.dtype = getattr(torch, shape.dtype)
    model = _model(files, options, shape, device)
    if (files.config.get("quantization_config") or {}).get("quant_method") == "compressed-tensors":
        with torch.no_grad():  # it unpacks its weights in the first pass, into tensors that inference mode would seal
            model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=device), use_cache=False)
    if options.adapter is not None:
        model = merged(model, adapter_folder(options.adapter, offline=options.offline))
    give_back_freed()
    passed.append(("weights", time.perf_counter()))
    text_config = model.config.get_text_config()
    state = HybridState(config=text_config) if shape.has_state else None
    require_vocabulary(model.config, tokenizer)
    loaded = LoadedModel(model, tokenizer, shape, dtype, device, options.quant, state=state)
    loaded = replace(loaded, fingerprint=fingerprint(loaded))
    if trials is not None and options.fuse and trials.finding(MODULES).is_taken:
        ops = choose_ops("triton", device, four_bit=False)
    about = None
    if store is not None and options.adapter is None:
        about = circumstances(files, options, shape, device, ops)
    if store is None or about is None:
        loaded = check(loaded, ops, fuses=options.fuse)
    else:
        loaded = check_once(loaded, ops, store, about, fuses=options.fuse)
    set_apart(loaded.model)
    FilePages(folder).let_go()
    give_back_freed()
    stages = {name: end - start for (_, start), (name, end) in pairwise(passed)}
    return replace(loaded, stages={**stages, **loaded.stages})


def _ops(wanted: str, device: torch.device) -> FusedOps:
    try:
        return choose_ops(wanted, device)
    except KernelsUnavailable as error:
        raise refused_kernels(wanted, error) from error


def shape_on(files: ModelFiles, dtype: str | None, device: torch.device) -> ModelShape:
    """The model's shape in the dtype it is computed in."""
    shape = files.shape(dtype)
    if shape.dtype == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        if dtype is None:
            return files.shape("float16")  # Turing has no bfloat16 arithmetic
        raise UsageError("this GPU has no bfloat16 arithmetic; give --dtype float16")
    return shape


def _room(files: ModelFiles, shape: ModelShape, options: ModelOptions, device: torch.device) -> int | None:
    """Bytes that the weights leave, once loaded; None where they do not say. Raises DoesNotFit where none are."""
    about = (files.weights, options.quant, device.type)
    needed, free = weight_term(shape, *about, options.kernels).predicted_bytes, free_bytes(device)
    if needed is not None and needed > free:
        less = weight_term(shape, *about, "triton").predicted_bytes
        tries = ["--kernels triton, which keeps the file's blocks,"] if less is not None and less <= free else []
        tries += ["--4bit"] if options.quant == "none" else []
        raise DoesNotFit(
            f"the weights take {human_bytes(needed)} and {human_bytes(free)} are free on {device}; "
            f"give {' or '.join([*tries, 'a smaller model'])}"
        )
    return None if needed is None else free - needed


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`. Raises BrokenModel where it is missing or damaged, ModelError where it is code."""
    try:
        tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, PARSER_ERRORS):  # tokenizers raises plain Exception
            raise
        raise refusal(folder, "tokenizer", error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _model(files: ModelFiles, options: ModelOptions, shape: ModelShape, device: torch.device) -> PreTrainedModel:
    folder, place = files.folder, files.gguf.path if files.gguf else files.folder
    dtype: torch.dtype = getattr(torch, shape.dtype)
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "eager",
        "trust_remote_code": options.trust_remote_code,
        "local_files_only": True,
        "ignore_mismatched_sizes": True,  # they are told by name below; transformers would only say that there are some
        "use_safetensors": None if options.allow_pickle else True,
    }
    if (folder / ADAPTER_CONFIG).is_file():  # where peft is installed, transformers would attach it
        arguments["adapter_kwargs"] = {"subfolder": "none"}
    bits = packed_bits(options.quant, device.type)
    held = (files.weights, shape.dtype, options.quant, device.type)
    in_blocks = files.gguf is not None and keeps_blocks(*held, options.kernels)
    if (device.type == "cuda" and not in_blocks) or (options.quant != "none" and not bits):
        arguments["device_map"] = {"": device}
    try:
        if options.quant != "none":
            arguments["quantization_config"] = (
                packed_settings(bits, pages=FilePages(folder))
                if bits
                else quantisation(folder, options.quant, dtype, device, trust_remote_code=options.trust_remote_code)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            packs = in_blocks or stays_packed(*held)
            loaded = (
                _from_gguf(files, arguments, is_long=shape.is_long, packs=packs, in_blocks=in_blocks)
                if files.gguf
                else _from_folder(folder, arguments, is_long=shape.is_long)
            )
    except MemoryError as error:
        raise DoesNotFit("the weights do not fit in this machine's memory; try a smaller model") from error
    except PARSER_ERRORS as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"the weights do not fit on {device}; try --4bit or a smaller model") from error
        raise refusal(place, "model", error) from error
    model, info = loaded
    require_tensors(place, info)
    assert isinstance(model, PreTrainedModel)
    if "device_map" not in arguments:
        torch.nn.Module.to(model, device)
    model.eval()
    return model


def _from_folder(folder: Path, arguments: dict[str, Any], *, is_long: bool) -> Any:
    part = text_part_arguments(folder)
    if is_long:
        about = {name: arguments[name] for name in ("trust_remote_code", "local_files_only")}
        part.setdefault("config", AutoConfig.from_pretrained(folder, **about))
        for_long_texts(part["config"])
    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments, **part)


def _from_gguf(files: ModelFiles, arguments: dict[str, Any], *, is_long: bool, packs: bool, in_blocks: bool) -> Any:
    from kvlite.models.gguf_weights import packed_sources, state_dict

    assert files.gguf is not None
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
    if is_long:
        for_long_texts(config)
    taken: set[str] = set()
    weights = state_dict(files.gguf, arguments["dtype"], taken)
    if packs:
        sources = packed_sources(files.gguf, weights)
        arguments["quantization_config"] = packed_settings(0, sources, taken, in_blocks=in_blocks)
    kind = getattr(transformers, config.architectures[0])
    return kind.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True, **arguments)
