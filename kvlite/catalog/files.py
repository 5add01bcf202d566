"""Find the files and facts of a model: on this machine where they are here, else from the Hub."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvlite.catalog import hub
from kvlite.catalog.config import CONFIG, GENERATION, has_tokenizer, read_card, read_config, read_object
from kvlite.catalog.names import ModelRef, aliases
from kvlite.catalog.snapshots import cached_snapshot, missing_parts
from kvlite.catalog.weights import read_weights, refuse_other_formats, weight_files, weight_names
from kvlite.errors import BrokenModel
from kvlite.memory.prediction import Weights

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of a model in `folder`, not all of which need be there, and the facts they tell.

    `weights` is None when there are none to measure (a folder with only config.json), `revision`, the commit, for a
    folder of the user's.
    """

    ref: ModelRef
    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    weights: Weights | None = None
    repo: str | None = None
    revision: str | None = None
    license: str | None = None

    @property
    def stored_dtype(self) -> str | None:
        """The float type most weight bytes are stored in (`bfloat16`); None when unknown."""
        sizes = self.weights.by_dtype if self.weights else {}
        most = max((dtype for dtype in _DTYPES if dtype in sizes), key=sizes.__getitem__, default=None)
        return most and _DTYPES[most]

    @property
    def name(self) -> str:
        """`repo@sha`, or the folder's or alias's name."""
        return str(self.ref) if self.repo is None else f"{self.repo}@{(self.revision or 'main')[:7]}"

    def identity(self) -> str:
        """Name the weights so that resumed work can check them: repository and commit, or folder, or a hash."""
        if self.ref.is_demo:
            return f"{self.ref}@{sha256((self.folder / 'model.safetensors').read_bytes()).hexdigest()[:12]}"
        return f"{self.repo}@{self.revision}" if self.repo else str(self.folder)


def model_facts(ref: ModelRef, *, offline: bool = False) -> ModelFiles:
    """Read the facts of a model, from its files when they are here, else from the Hub without downloading weights.

    Raises ModelNotFound, GatedModel, HubUnreachable, BrokenModel.
    """
    if ref.path is not None:
        return _read_folder(ref, ref.path)
    assert ref.repo is not None
    snapshot = cached_snapshot(ref.repo, ref.revision)
    missing = set(missing_parts(snapshot, allow_pickle=True)) - {"tokenizer"}
    if snapshot is not None and (not missing or (hub.is_offline(offline) and CONFIG not in missing)):
        return _read_folder(ref, snapshot)
    if hub.is_offline(offline):
        raise hub.offline_error(ref, [CONFIG])
    remote = hub.remote_repo(ref)
    found = _read_folder(ref, hub.fetch_small(remote, CONFIG, GENERATION))
    return replace(found, weights=hub.remote_weights(remote), license=remote.license)


def local_files(
    ref: ModelRef,
    *,
    offline: bool = False,
    allow_pickle: bool = False,
    say: Callable[[str], None] | None = None,
) -> ModelFiles:
    """Find the model's files on this machine and download those that are not here; `say` is called before a download.

    A complete snapshot in the cache is used without any request. Raises ModelNotFound, GatedModel, HubUnreachable,
    UnsupportedModel (pickles without `allow_pickle`, GGUF), BrokenModel, OutputError.
    """
    if ref.path is not None:
        return files_in(ref, ref.path, allow_pickle=allow_pickle)
    assert ref.repo is not None
    folder = cached_snapshot(ref.repo, ref.revision)
    missing = missing_parts(folder, allow_pickle=allow_pickle)
    if folder is None or missing:
        if hub.is_offline(offline):
            raise hub.offline_error(ref, missing)
        wanted = hub.offer(ref, allow_pickle=allow_pickle)
        if say is not None:
            say(f"downloading {wanted}")
        folder = hub.download(wanted)
    return files_in(ref, folder, allow_pickle=allow_pickle)


def files_in(ref: ModelRef, folder: Path, *, allow_pickle: bool = False) -> ModelFiles:
    """Read and check a complete model in `folder`. Raises UnsupportedModel or BrokenModel naming the file at fault."""
    name = str(folder) if ref.path else hub.describe(ref)
    names = [path.name for path in folder.iterdir()]
    if CONFIG not in names:
        refuse_other_formats(names, model=name)
    found = _read_folder(ref, folder)
    weight_names(names, model=name, allow_pickle=allow_pickle)
    if not has_tokenizer(folder):
        raise BrokenModel(f"{name} has no tokenizer (tokenizer.json); copy it from the model it was made from")
    return found


def _read_folder(ref: ModelRef, folder: Path) -> ModelFiles:
    """Read what is there; a snapshot may lack its weights, a user's folder any of them."""
    config, generation = read_config(folder), folder / GENERATION
    names = weight_files(folder)
    is_whole = all((folder / name).is_file() for name in names)
    weights = read_weights(folder) if is_whole or ref.path else None
    if weights is None and names and is_whole:  # pickles
        weights = Weights(sum((folder / name).stat().st_size for name in names))
    alias = aliases().get(ref.alias or "")
    return ModelFiles(
        ref=ref,
        folder=folder,
        config=config,
        generation=read_object(generation) if generation.is_file() else {},
        weights=weights,
        repo=ref.repo,
        revision=folder.name if ref.repo else None,
        license=read_card(folder)[0] or (alias.licence if alias else None),
    )
