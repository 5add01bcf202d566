"""What a row of the bad-input table is made of: a command line, what it meets and what must follow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvlite.catalog.names import demo_folder
from tests.architectures import tiny_model

Change = bytes | None | Callable[[bytes], bytes]
"""What becomes of a file: these bytes, nothing, or what the function makes of the bytes it had."""

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_VOCAB = 1024  # of the built-in model's tokenizer
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "small": ("llama", {"vocab_size": 100}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_positions": 32, "max_position_embeddings": None}),
}
"""The tiny models that rows name: one with a vocabulary too small for its tokenizer, one of 32 learned positions."""


@dataclass(frozen=True)
class Model:
    """A folder with one of WHOLE, some of whose files are changed."""

    name: str = "llama"
    changes: Mapping[str, Change] = field(default_factory=dict)

    def write(self, folder: Path, whole: Path) -> None:
        """Put the model that lies complete in `whole` into `folder`, with the changes."""
        shutil.copytree(whole, folder)
        for name, change in self.changes.items():
            path = folder / name
            content = change(path.read_bytes()) if callable(change) else change
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)


@dataclass(frozen=True)
class Row:
    """One mistake: `command` runs in a folder that holds `files`, and ends with `code` and a line that has `says`.

    `answered` and `failed` are ids of the records in `output`, which is `-` for stdout. All other files stay as they
    were. `hub` are repositories of a Hub on the loopback interface, without it there is no network.
    """

    name: str
    command: str
    code: int
    says: str
    files: Mapping[str, bytes | Model | None] = field(default_factory=dict)
    stdin: bytes | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    hub: Mapping[str, Mapping[str, Any]] | None = None
    output: str = "-"
    answered: str = ""
    failed: str = ""


def model(**changes: Change) -> dict[str, Model]:
    """The folder `tiny` with a tiny llama; `changes` by file name with `__` for a dot."""
    return {"tiny": Model("llama", {name.replace("__", "."): change for name, change in changes.items()})}


def fields(**changed: Any) -> Callable[[bytes], bytes]:
    """A change of a JSON object's fields; one that is `...` is left out."""

    def change(content: bytes) -> bytes:
        merged = json.loads(content) | changed
        return json.dumps({name: value for name, value in merged.items() if value is not ...}).encode()

    return change


def header(**changed: Any) -> Callable[[bytes], bytes]:
    """A change of what a safetensors header says of its first tensor; the data stay."""

    def change(content: bytes) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:end])
        first = next(name for name in entries if name != "__metadata__")
        entries[first] |= changed
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + content[end:]

    return change


def renamed(old: str, new: str) -> Callable[[bytes], bytes]:
    """A change of one tensor's name, by one of equal length."""
    assert len(old) == len(new)
    return lambda content: content.replace(old.encode(), new.encode(), 1)


def whole_model(folder: Path, name: str) -> Path:
    """Save the tiny random model called `name`, with the built-in model's tokenizer, into `folder`."""
    model_type, settings = WHOLE[name]
    tiny_model(model_type, {"vocab_size": _VOCAB, "num_hidden_layers": 2, **settings}).save_pretrained(folder)
    for file in _TOKENIZER:
        shutil.copy(demo_folder() / file, folder)
    return folder


def lines(*values: object) -> bytes:
    """JSON lines; a value that is bytes is a line as it stands."""
    return b"".join((v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n" for v in values)
