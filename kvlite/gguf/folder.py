"""A folder as transformers wants it, made once of a GGUF file's header: config, tokenizer and generation defaults.

Everything but the weights is then read as from any other model. The folder lies in the user's cache, is named by the
file's place, size and time, and may be deleted at any time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from kvlite.errors import OutputError
from kvlite.gguf.families import config_of, decimal, weight_names
from kvlite.gguf.header import Header, read_header
from kvlite.gguf.tokenizer import build_tokenizer, cut_of, end_tokens, tokenizer_config

_VERSION = 2
"""Counts up when what is written here changes."""

_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip


def gguf_folder(path: Path) -> Path:
    """The folder of a GGUF file, made where there is none yet.

    Raises BrokenModel or UnsupportedModel on a file that is not read, OutputError where the folder cannot be written.
    """
    stat = path.stat()
    key = sha256(f"{_VERSION}\0{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = user_cache_path("kvlite", appauthor=False) / "gguf" / key
    if not (folder / "config.json").is_file():
        _make(read_header(path), folder)
    return folder


def _make(header: Header, folder: Path) -> None:
    require_known(header)
    parts: dict[str, Any] = {
        "config.json": config_of(header),
        "generation_config.json": generation_of(header),
        "tokenizer_config.json": tokenizer_config(header),
    }
    tokenizer = build_tokenizer(header)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        tokenizer.save(str(made / "tokenizer.json"))
        for name, content in parts.items():
            (made / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}; set XDG_CACHE_HOME to another place"
        ) from error


def require_known(header: Header) -> None:
    """Refuse a file that would not load: its family, its tensors, the way it cuts text. Raises as `gguf_folder`."""
    config_of(header)
    weight_names(header)
    cut_of(header)


def generation_of(header: Header) -> dict[str, Any]:
    """The generation_config.json of a file: the ids that end an answer, and how to sample where it says so."""
    given = {name: header.metadata.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
    sampling = {name: decimal(value) if isinstance(value, float) else value for name, value in given.items()}
    draws = any(value is not None for name, value in given.items() if name != "repetition_penalty")
    sampling["do_sample"] = given["temperature"] != 0 if draws else None
    return {"eos_token_id": end_tokens(header)} | {name: one for name, one in sampling.items() if one is not None}
