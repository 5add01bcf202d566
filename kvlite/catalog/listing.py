"""List the models on this machine: the built-in one and those of the cache, usable or not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from kvlite.catalog import snapshots
from kvlite.catalog.files import files_in
from kvlite.catalog.names import DEMO, Alias, ModelRef, alias_of, demo_folder
from kvlite.catalog.stores import StoredModel, stored_models
from kvlite.catalog.wheel import fetched_wheels
from kvlite.errors import ModelError, UnsupportedModel
from kvlite.memory.shape import ModelShape

_MODEL_SUFFIXES = {".json", ".jinja", ".safetensors", ".md"}
State = Literal["ready", "incomplete", "unsupported", "broken"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A model on this machine; `name` is what to type, `problem` why it is not ready, times are seconds since 1970."""

    name: str
    repo: str | None
    revision: str | None
    size_bytes: int
    modified_s: float
    kv_bytes_per_token: int | None
    state: State
    problem: str | None


def list_models() -> list[Listed]:
    """List the built-in model, those out of wheels, all in the Hub's cache, and those that other programs keep."""
    cached = chain.from_iterable(_cached(repo) for repo in snapshots.cached_repos())
    return [
        _demo(),
        *(_fetched(alias, file) for alias, file in fetched_wheels()),
        *cached,
        *map(_stored, stored_models()),
    ]


def _demo() -> Listed:
    folder = demo_folder()
    paths = [path for path in folder.iterdir() if path.suffix in _MODEL_SUFFIXES]  # it is a package of Python, too
    size, modified = sum(path.stat().st_size for path in paths), folder.stat().st_mtime
    return Listed(DEMO, None, None, size, modified, *_usable(ModelRef(alias=DEMO, path=folder), folder))


def _fetched(alias: Alias, file: Path) -> Listed:
    stat = file.stat()
    ref, requirement = ModelRef(alias=alias.name, path=file), alias.wheel.requirement if alias.wheel else None
    return Listed(alias.name, requirement, None, stat.st_size, stat.st_mtime, *_usable(ref, file))


def _stored(model: StoredModel) -> Listed:
    stat = model.path.stat()
    ref = ModelRef(alias=str(model), path=model.path)
    return Listed(str(model), model.store, None, stat.st_size, stat.st_mtime, *_usable(ref, model.path))


def _cached(repo: str) -> Iterator[Listed]:
    """A repository as one model, or each of its GGUF files as one."""
    alias = alias_of(repo)
    ref = ModelRef(alias=alias.name if alias else None, repo=repo)
    snapshot = snapshots.cached_snapshot(repo, None)
    at = ""
    if snapshot is None and (snapshot := snapshots.newest_snapshot(repo)):  # only a commit was asked for
        at = f"@{snapshot.name}"
    revision, modified = snapshot.name if snapshot else None, snapshots.modified_s(repo)
    files = list(snapshot.rglob("*.gguf")) if snapshot else []
    for file in files:
        name = f"{repo}:{file.stem}{at}"
        yield Listed(name, repo, revision, file.stat().st_size, modified, *_usable(replace(ref, path=file), file))
    if not files:
        size = snapshots.size_on_disk(repo)
        yield Listed(f"{ref}{at}", repo, revision, size, modified, *_usable(ref, snapshot))


def _usable(ref: ModelRef, folder: Path | None) -> tuple[int | None, State, str | None]:
    """Find the KV bytes per token, the state, and the problem where it is not ready."""
    missing: list[str] = []
    try:
        missing = snapshots.missing_parts(folder, allow_pickle=True) if ref.path is None else []
        if folder is None:
            return None, "incomplete", f"missing: {', '.join(missing)}"
        files = files_in(ref, folder, allow_pickle=True)
        return ModelShape.from_config(files.config, stored_dtype=files.stored_dtype).kv_bytes_per_token(), "ready", None
    except UnsupportedModel as error:
        return None, "unsupported", str(error)
    except ModelError as error:
        if missing:
            return None, "incomplete", f"missing: {', '.join(missing)}; `kvlite pull {ref}` completes it"
        return None, "broken", str(error)
