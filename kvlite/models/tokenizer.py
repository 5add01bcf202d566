"""Read a model's tokenizer so that it cuts and decodes as its files say, whatever class they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kvlite.catalog.config import read_object

_TOKENIZER, _TEMPLATE = "tokenizer.json", "chat_template.json"  # the latter by processors of image models
_SAMPLE = "Hello  world, don't\n\n  naïve café 2026 x1=[a_b]; привет 你好，世界 🙂 🧑‍🚀\tIT'S\n"
"""Text in which cuts differ: numbers, contractions, white space, scripts, signs."""


def read_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of `folder` with the model's chat template. Raises what transformers and tokenizers raise."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    tokenizer.encode("a")  # some mistakes show only here
    if type(tokenizer) is not PreTrainedTokenizerFast and not trust_remote_code and (folder / _TOKENIZER).is_file():
        tokenizer = _as_written(folder, tokenizer)
    _decode_bytes(tokenizer)
    template = folder / _TEMPLATE
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = read_object(template).get("chat_template")
    return tokenizer


def _as_written(folder: Path, tokenizer: Any) -> Any:
    """The tokenizer that tokenizer.json describes, where `tokenizer` cuts otherwise.

    The classes of transformers 5 take the vocabulary alone from the file and cut by rules of their own. Models are
    often published with the class of another family: a byte-level vocabulary with Llama's class loses its spaces.
    """
    file = Tokenizer.from_file(str(folder / _TOKENIZER))
    file.no_truncation()
    if tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"] == file.encode(_SAMPLE, add_special_tokens=False).ids:
        return tokenizer
    written = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    for name, token in tokenizer.special_tokens_map.items():  # a class knows some that its files do not name
        if isinstance(token, str) and getattr(written, name, None) is None and token in written.get_vocab():
            setattr(written, name, token)
    return written


def _decode_bytes(tokenizer: Any) -> None:
    """Give a tokenizer that cuts text into bytes a decoder for these, where its file has another kind's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    cut, decoder = getattr(backend, "pre_tokenizer", None), getattr(backend, "decoder", None)
    if backend is None or cut is None or b'"ByteLevel"' not in cut.__getstate__():
        return
    if decoder is None or b'"ByteLevel"' not in decoder.__getstate__():
        backend.decoder = ByteLevel()
