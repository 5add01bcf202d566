"""Models that other programs keep on this machine as GGUF files; they are read and never changed.

ollama keeps a manifest for each name and tag, whose layer of kind `model` names a blob:
https://github.com/ollama/ollama/blob/main/docs/api.md. LM Studio keeps publisher/model/file.gguf, llama.cpp files.
Docker's Model Runner keeps an index of tags, and a manifest and blobs by digest:
https://github.com/docker/model-runner/tree/main/pkg/distribution/internal/store.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvlite.catalog.weights import gguf_files
from kvlite.gguf.header import is_gguf, models_among

_OLLAMA_HOST, _OLLAMA_OWNER = "registry.ollama.ai", "library"
_OLLAMA_ADAPTER = "application/vnd.ollama.image.adapter"
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_SYSTEM = "application/vnd.ollama.image.system"
_DOCKER_HOST = re.compile(r"(index\.)?docker\.io/")
_DOCKER_MODELS = ("application/vnd.docker.ai.gguf.v3", "application/vnd.cncf.model.weight.v1.gguf")
_MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors of reading what is not of the form that is expected."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model of another program by the name that program has for it: a GGUF file, or a `problem` in one sentence.

    `path` is the file, or that of the manifest where there is none.
    """

    store: str
    name: str
    path: Path
    system: Path | None = None
    """The file of the system prompt that the program gives it."""
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.store}:{self.name}"


def stored_models() -> list[StoredModel]:
    """List the models of ollama, LM Studio, llama.cpp and Docker on this machine, each once, by store and name."""
    found: dict[str, StoredModel] = {}
    for model in (*_ollama(), *_lm_studio(), *_llama_cpp(), *_docker()):
        if model.problem is None or str(model) not in found:
            before = found.get(str(model))
            found[str(model)] = model if before is None or before.problem else before
    return [found[name] for name in sorted(found)]


def find_stored(name: str) -> list[StoredModel]:
    """Find the models that `name` means, with or without the store or the Hub before it and `:latest` behind it.

    Of a folder with several files those that fit the quantisation behind its name, or the usual one. Raises
    ModelNotFound, naming them, where none or several fit.
    """
    wanted, models = name.lower().removesuffix(":latest").removesuffix(".gguf"), stored_models()
    found = [
        model
        for model in models
        for short in (model.name.lower().removesuffix(":latest"),)
        if wanted in (f"{model.store}:{short}", short, short.removeprefix("hf.co/"))
    ]
    return found or _of_folder(name, models)


def _of_folder(name: str, models: Sequence[StoredModel]) -> list[StoredModel]:
    """The file among several of LM Studio's folder `publisher/model` that a name without a file's means."""
    name = name[len("lmstudio:") :] if name.lower().startswith("lmstudio:") else name
    folder, _, quant = name.partition(":")
    held = {
        f"{model.name.rpartition(':')[2]}.gguf": model
        for model in models
        if model.store == "lmstudio" and model.name.lower().startswith(f"{folder.lower()}:")
    }
    chosen = gguf_files(held, quant or None, model=f"lmstudio:{folder}") if held else []
    return [held[file] for file in chosen]


def _ollama() -> Iterator[StoredModel]:
    places = (os.environ.get("OLLAMA_MODELS"), "~/.ollama/models", "/usr/share/ollama/.ollama/models")
    for root in (Path(place).expanduser() for place in places if place):
        for manifest in _files(root / "manifests", "*/*/*/*"):
            host, owner, model, tag = manifest.relative_to(root / "manifests").parts
            before = [part for part, usual in ((host, _OLLAMA_HOST), (owner, _OLLAMA_OWNER)) if part != usual]
            name = f"{'/'.join([*before, model])}:{tag}"
            try:
                yield _of_manifest(root, name, manifest)
            except PermissionError as error:
                why = f"may not be read: {error.filename}; ask for the right to read it"
                yield StoredModel("ollama", name, manifest, problem=why)
            except _MALFORMED:
                why = "is damaged: its manifest cannot be read; pull it again with ollama"
                yield StoredModel("ollama", name, manifest, problem=why)


def _of_manifest(root: Path, name: str, manifest: Path) -> StoredModel:
    """The model of one of ollama's manifests; what is missing or of another kind is its problem."""
    layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
    kinds = {layer["mediaType"]: layer["digest"] for layer in layers}
    blobs = {kind: root / "blobs" / digest.replace(":", "-") for kind, digest in kinds.items()}
    held, why = blobs.get(_OLLAMA_MODEL), None
    if _OLLAMA_ADAPTER in kinds:  # its answers would be those of its base
        why = "is an adapter on another model, which kvlite does not read from ollama; use the merged model"
    elif held is None:
        why = "holds no GGUF file, which is all that kvlite reads from ollama; use the model's safetensors repository"
    elif not held.is_file():
        why = f"is not whole: {held.name} is missing; pull it again with ollama"
    elif not os.access(held, os.R_OK):
        raise PermissionError(13, "no right", str(held))
    elif not is_gguf(held):
        why = f"holds {held.name}, which is no GGUF file; pull it again with ollama"
    return StoredModel("ollama", name, manifest if why or held is None else held, blobs.get(_OLLAMA_SYSTEM), why)


def _lm_studio() -> Iterator[StoredModel]:
    for root in _lm_studio_folders():
        for folder in sorted({file.parent for file in _files(root, "*/*/*.gguf")}):
            name, models = folder.relative_to(root).as_posix(), models_among(path.name for path in folder.iterdir())
            for stem, parts in models.items():
                yield StoredModel("lmstudio", name if len(models) == 1 else f"{name}:{stem}", folder / parts[0])


def _lm_studio_folders() -> list[Path]:
    """The folders of models of LM Studio's homes, moved ones too; where its settings name another, that one first."""
    homes = [Path(place).expanduser() for place in ("~/.lmstudio", "~/.cache/lm-studio")]
    with suppress(*_MALFORMED):
        moved = Path("~/.lmstudio-home-pointer").expanduser().read_text(encoding="utf-8").strip()
        homes[:0] = [Path(moved)] if moved else []
    named = []
    for home in homes:
        with suppress(*_MALFORMED):
            named.append(Path(json.loads((home / "settings.json").read_text(encoding="utf-8"))["downloadsFolder"]))
    return list(dict.fromkeys([*named, *(home / "models" for home in homes)]))


def _docker() -> Iterator[StoredModel]:
    root = Path("~/.docker/models").expanduser()
    with suppress(*_MALFORMED):
        for entry in json.loads((root / "models.json").read_text(encoding="utf-8"))["models"]:
            with suppress(*_MALFORMED):
                manifest = (root / "manifests" / entry["id"].replace(":", "/")).read_text(encoding="utf-8")
                layers = [layer for layer in json.loads(manifest)["layers"] if layer["mediaType"] in _DOCKER_MODELS]
                blobs = [root / "blobs" / layer["digest"].replace(":", "/") for layer in layers]
                if len(blobs) == 1 and is_gguf(blobs[0]):  # parts of a split file do not find each other there
                    for tag in entry["tags"]:
                        yield StoredModel("docker", _DOCKER_HOST.sub("", tag, count=1), blobs[0])


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
