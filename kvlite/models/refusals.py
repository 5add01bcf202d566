"""Errors of transformers and the parsers below it, and what it loaded only in part, as errors of the user's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import PickleError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kvlite.errors import BrokenModel, KvliteError, ModelError, UnsupportedModel

PARSER_ERRORS = (
    OSError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    ImportError, EOFError, PickleError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""Errors that transformers and the parsers below it raise on files they cannot use."""


def require_tensors(place: Path, info: Mapping[str, Any]) -> None:
    """Raise BrokenModel where transformers' `info` of what it loaded from `place` names tensors that do not fit."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise BrokenModel(f"the weights in {place} lack {_first(missing)}; download it again")
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        _, held, wanted = mismatched[0]
        names = _first([name for name, *_ in mismatched])
        raise BrokenModel(
            f"config.json does not fit the weights in {place}: {names}, {list(held)} for {list(wanted)}; "
            "download it again"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's message, else its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__:.200}"


def _first(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


def require_vocabulary(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse the tokenizer of another model; tokens added beyond the embedding are refused where a prompt has them."""
    held, added = config.get_text_config().vocab_size, tokenizer.added_tokens_decoder
    largest = max((index for index in tokenizer.get_vocab().values() if index not in added), default=0)
    if largest >= held:
        raise BrokenModel(f"the tokenizer has ids up to {largest} but the model only {held}; download it again")


def refusal(folder: Path, part: str, error: Exception) -> KvliteError:
    """The user's error where `part` of `folder` cannot be loaded."""
    text = str(error)
    if isinstance(error, ImportError) and (needed := re.search(r"`(pip install [^`]+)`", text)):
        return UnsupportedModel(f"the {part} in {folder} needs a package that is not here; `{needed[1]}`")
    if "instantiate the backend tokenizer" in text:
        return BrokenModel(f"{folder} has no tokenizer (tokenizer.json); copy it from the model it was made from")
    if part == "tokenizer" and re.search("sentencepiece|tiktoken|protobuf", text, re.IGNORECASE):
        return UnsupportedModel(
            f"the tokenizer in {folder} needs a package that is not here; `pip install 'kvlite-llm[sentencepiece]'` "
            f"({first_line(error)})"
        )
    if "for this kind of AutoModel" in text:
        message = f"{folder} is not a causal language model that transformers knows; choose another model"
        return UnsupportedModel(message)
    if "trust_remote_code" in text:
        return ModelError(f"{folder} runs code of its own; read it, then give --trust-remote-code")
    if isinstance(error, OSError) and "safetensors" in text and any(folder.glob("*.bin")):
        return BrokenModel(f"{folder} has no safetensors weights; give --allow-pickle if you trust its .bin files")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    why = (
        [f"{type(error).__name__}:", *lines[: 2 if lines[0].endswith(":") else 1]] if lines else [type(error).__name__]
    )
    return BrokenModel(f"the {part} in {folder} cannot be loaded: {' '.join(why)}")
