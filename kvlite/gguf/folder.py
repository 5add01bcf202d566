"""A folder as transformers wants it, made once of a GGUF file's header: config, tokenizer and generation defaults.

Everything but the weights is then read as from any other model. The folder lies in the user's cache, is named by the
file's place, size and time, and may be deleted at any time.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from platformdirs import user_cache_path

from kvlite.errors import OutputError
from kvlite.gguf.families import config_of, weight_names
from kvlite.gguf.header import Header, one_line
from kvlite.gguf.rope import decimal
from kvlite.gguf.tokenizer import added_tokens, build_tokenizer, cut_of, end_tokens, tokenizer_config
from kvlite.gguf.wholeness import require_whole

_VERSION = 3
"""Counts up when what is written here changes."""

_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip


def folder_of(path: Path) -> Path:
    """The place of a GGUF file's folder; it need not exist."""
    stat = path.stat()
    key = sha256(f"{_VERSION}\0{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    return user_cache_path("kvlite", appauthor=False) / "gguf" / key


def gguf_folder(header: Header) -> Path:
    """The folder of a GGUF file, made where there is none yet.

    Raises BrokenModel or UnsupportedModel on a file that is not read, OutputError where the folder cannot be written.
    """
    folder = folder_of(header.path)
    if (folder / "config.json").is_file():
        return folder
    require_known(header)
    with one_line(header.path):
        tokenizer = build_tokenizer(header)
        settings = tokenizer_config(header) | {"added_tokens_decoder": added_tokens(tokenizer)}
        texts = {
            "config.json": json.dumps(config_of(header), indent=1),
            "generation_config.json": json.dumps(generation_of(header), indent=1),
            "tokenizer_config.json": json.dumps(settings, indent=1),
            "tokenizer.json": tokenizer.to_str(),
        }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for name, text in texts.items():
                (made / name).write_text(text, encoding="utf-8")
            made.rename(folder)
    except OSError as error:
        if not (folder / "config.json").is_file():  # else another process was faster
            raise OutputError(f"{folder} cannot be written: {error}; make its place writable") from error
    return folder


def require_known(header: Header) -> None:
    """Refuse a file that would not load: its family, its tensors, the way it cuts text. Raises as `gguf_folder`."""
    with one_line(header.path):
        config = config_of(header)
        weight_names(header)
        require_whole(header, config)
        cut_of(header)


def generation_of(header: Header) -> dict[str, Any]:
    """The generation_config.json of a file: the ids that end an answer, and how to sample where it says so."""
    given = {name: header.metadata.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
    sampling = {name: decimal(value) if isinstance(value, float) else value for name, value in given.items()}
    draws = any(value is not None for name, value in given.items() if name != "repetition_penalty")
    sampling["do_sample"] = given["temperature"] != 0 if draws else None
    return {"eos_token_id": end_tokens(header)} | {name: one for name, one in sampling.items() if one is not None}
