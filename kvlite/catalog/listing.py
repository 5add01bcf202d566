"""List the models on this machine: the built-in one and those of the cache, usable or not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from kvlite.catalog import snapshots
from kvlite.catalog.files import files_in
from kvlite.catalog.names import DEMO, ModelRef, alias_of, aliases, demo_folder
from kvlite.catalog.shapes import known_model
from kvlite.catalog.snapshots import gguf_names
from kvlite.catalog.stores import StoredModel, stored_models
from kvlite.catalog.wheel import fetched_wheels
from kvlite.errors import ModelError, OutputError, UnsupportedModel
from kvlite.gguf.header import models_among, part_names
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
        *(_file(alias.name, alias.wheel.requirement, file) for alias, file in fetched_wheels() if alias.wheel),
        *cached,
        *map(_stored, stored_models()),
    ]


@dataclass(frozen=True, slots=True)
class ListedAlias:
    """A short name, the repository it stands for, and what is known of that at a date."""

    name: str
    also: tuple[str, ...]
    repo: str
    license: str
    gated: bool
    weight_bytes: int
    kv_bytes_per_token: int
    as_of: str


def list_aliases() -> list[ListedAlias]:
    """List all aliases, in the order of their table."""
    listed = []
    for alias in aliases().values():
        known = known_model(alias.name)
        assert known is not None, "every alias is in the table of shapes"
        kv = ModelShape.from_config(known.config).kv_bytes_per_token()
        facts = (alias.licence, alias.gated, known.weights.num_bytes, kv, known.date)
        listed.append(ListedAlias(alias.name, alias.also, alias.repo, *facts))
    return listed


def _demo() -> Listed:
    folder = demo_folder()
    paths = [path for path in folder.iterdir() if path.suffix in _MODEL_SUFFIXES]  # it is a package of Python, too
    size, modified = sum(path.stat().st_size for path in paths), folder.stat().st_mtime
    return Listed(DEMO, None, None, size, modified, *_usable(ModelRef(alias=DEMO, path=folder), folder))


def _file(name: str, source: str, path: Path) -> Listed:
    parts = [part for part in map(path.with_name, part_names(path.name)) if part.is_file()]
    size = sum(part.stat().st_size for part in parts)
    return Listed(name, source, None, size, path.stat().st_mtime, *_usable(ModelRef(alias=name, path=path), path))


def _stored(model: StoredModel) -> Listed:
    if model.problem is None:
        return _file(str(model), model.store, model.path)
    stat = model.path.stat()
    why = f"{model} {model.problem}"
    return Listed(str(model), model.store, None, stat.st_size, stat.st_mtime, None, "unsupported", why)


def _cached(repo: str) -> Iterator[Listed]:
    """A repository as one model, or each of its GGUF files as one."""
    alias = alias_of(repo)
    ref = ModelRef(alias=alias.name if alias else None, repo=repo)
    snapshot = snapshots.cached_snapshot(repo, None)
    at = ""
    if snapshot is None and (snapshot := snapshots.newest_snapshot(repo)):  # only a commit was asked for
        at = f"@{snapshot.name}"
    revision, modified = snapshot.name if snapshot else None, snapshots.modified_s(repo)
    models = models_among(gguf_names(snapshot)) if snapshot else {}
    for stem, parts in models.items():
        assert snapshot is not None
        first, size = snapshot / parts[0], sum((snapshot / part).stat().st_size for part in parts)
        yield Listed(f"{repo}:{stem}{at}", repo, revision, size, modified, *_usable(replace(ref, path=first), first))
    if not models:
        size = snapshots.size_on_disk(repo)
        yield Listed(f"{ref}{at}", repo, revision, size, modified, *_usable(ref, snapshot))


def _usable(ref: ModelRef, folder: Path | None) -> tuple[int | None, State, str | None]:
    """Find the KV bytes per token, the state, and the problem where it is not ready."""
    try:
        missing = snapshots.missing_parts(folder, allow_pickle=True) if ref.path is None else []
        if folder is None or missing:
            return None, "incomplete", f"missing: {', '.join(missing)}; `kvlite pull {ref}` completes it"
        return files_in(ref, folder).shape().kv_bytes_per_token(), "ready", None
    except UnsupportedModel as error:
        return None, "unsupported", str(error)
    except (ModelError, OutputError) as error:
        return None, "broken", str(error)
