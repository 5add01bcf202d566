"""Models that other programs keep on this machine as GGUF files; they are read and never changed.

ollama keeps a manifest for each name and tag, whose layer of kind `model` names a blob:
https://github.com/ollama/ollama/blob/main/docs/api.md. LM Studio keeps publisher/model/file.gguf, llama.cpp files.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvlite.gguf.header import is_gguf, models_among

_OLLAMA_HOST, _OLLAMA_OWNER = "registry.ollama.ai", "library"
_OLLAMA_ADAPTER = "application/vnd.ollama.image.adapter"
_OLLAMA_MODEL = "application/vnd.ollama.image.model"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A GGUF file of another program, by the name that program has for it."""

    store: str
    name: str
    path: Path

    def __str__(self) -> str:
        return f"{self.store}:{self.name}"


def stored_models() -> list[StoredModel]:
    """List the models of ollama, LM Studio and llama.cpp on this machine, each once, sorted by store and name."""
    found: dict[str, StoredModel] = {}
    for model in (*_ollama(), *_lm_studio(), *_llama_cpp()):
        found.setdefault(str(model), model)
    return [found[name] for name in sorted(found)]


def find_stored(name: str) -> list[StoredModel]:
    """Find the models that `name` means, with or without the store before it and `:latest` behind it."""
    wanted = name.lower().removesuffix(":latest")
    return [
        model
        for model in stored_models()
        if wanted in (str(model).lower().removesuffix(":latest"), model.name.lower().removesuffix(":latest"))
    ]


def _ollama() -> Iterator[StoredModel]:
    places = (os.environ.get("OLLAMA_MODELS"), "~/.ollama/models", "/usr/share/ollama/.ollama/models")
    for root in (Path(place).expanduser() for place in places if place):
        for manifest in _files(root / "manifests", "*/*/*/*"):
            host, owner, model, tag = manifest.relative_to(root / "manifests").parts
            before = [part for part, usual in ((host, _OLLAMA_HOST), (owner, _OLLAMA_OWNER)) if part != usual]
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # of another kind
                layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
                kinds = {layer["mediaType"]: layer["digest"] for layer in layers}
                if _OLLAMA_ADAPTER in kinds:
                    continue  # its answers would be those of its base
                digest = kinds[_OLLAMA_MODEL]
                blob = root / "blobs" / digest.replace(":", "-")
                if is_gguf(blob):
                    yield StoredModel("ollama", f"{'/'.join([*before, model])}:{tag}", blob)


def _lm_studio() -> Iterator[StoredModel]:
    for root in (Path(place).expanduser() for place in ("~/.lmstudio/models", "~/.cache/lm-studio/models")):
        for folder in sorted({file.parent for file in _files(root, "*/*/*.gguf")}):
            name, models = folder.relative_to(root).as_posix(), models_among(path.name for path in folder.iterdir())
            for stem, parts in models.items():
                yield StoredModel("lmstudio", name if len(models) == 1 else f"{name}/{stem}", folder / parts[0])


def _llama_cpp() -> Iterator[StoredModel]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "llama.cpp"
    root = Path(os.environ.get("LLAMA_CACHE") or cache).expanduser()
    for stem, parts in models_among(path.name for path in _files(root, "*.gguf")).items():
        yield StoredModel("llama.cpp", stem, root / parts[0])


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except OSError:  # another user's
        return []
