"""Talk to the Hugging Face Hub: list repositories, read metadata by range requests, download.

huggingface_hub is imported when a function runs. It freezes its environment when first imported, so the cache folder
and the endpoint are passed on each call, as the environment has them now.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlite.catalog.config import CONFIG
from kvlite.catalog.hub_errors import as_kvlite_errors, describe
from kvlite.catalog.names import ModelRef
from kvlite.catalog.snapshots import DEFAULT_REVISION, cache_root, repo_folder
from kvlite.catalog.weights import INDEX, SINGLE, read_index, refuse_other_formats, small_files, weigh, weight_names
from kvlite.errors import BrokenModel, HubUnreachable
from kvlite.memory.format import human_bytes
from kvlite.memory.prediction import Weights

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class RemoteRepo:
    """A repository as the Hub describes it at one commit; `files` maps names to bytes."""

    ref: ModelRef
    repo: str
    commit: str
    files: Mapping[str, int]
    license: str | None
    base_model: str | None

    @property
    def snapshot(self) -> Path:
        """The folder of this commit in the cache; it need not exist."""
        return repo_folder(self.repo) / "snapshots" / self.commit


@dataclass(frozen=True, slots=True)
class Download:
    """Files of one commit to download; `missing_bytes` of `total_bytes` are not in the cache yet."""

    remote: RemoteRepo
    small: tuple[str, ...]
    weights: tuple[str, ...]
    total_bytes: int
    missing_bytes: int

    def __str__(self) -> str:
        here = "" if self.missing_bytes == self.total_bytes else f", {human_bytes(self.missing_bytes)} of it not here"
        return (
            f"{self.remote.repo}@{self.remote.commit[:7]}, licence {self.remote.license or 'unknown'}, "
            f"{human_bytes(self.total_bytes)}{here}"
        )


def is_offline(offline: bool = False) -> bool:
    """True where the network must not be used: by `offline`, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return offline or said.upper() in {"1", "ON", "YES", "TRUE"}


def remote_repo(ref: ModelRef) -> RemoteRepo:
    """Ask the Hub for the current commit of `ref`, its files, and access to them.

    Raises ModelNotFound, GatedModel with what to do about it, HubUnreachable, and UnsupportedModel or BrokenModel
    where it has no config.json.
    """
    assert ref.repo is not None
    if is_offline():
        raise HubUnreachable(
            f"{describe(ref)} cannot be asked for: HF_HUB_OFFLINE is set; unset it, or see `kvlite ls`"
        )
    with as_kvlite_errors(ref, "the list of files"):
        from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

        info = _api().model_info(ref.repo, revision=ref.revision, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT)
        licence, base_model = _from_card(info.card_data)
        if info.gated:
            with as_kvlite_errors(ref, "access", licence=licence):
                _api().auth_check(ref.repo)
    if info.sha is None:
        raise BrokenModel(f"{describe(ref)} has no commits yet; ask its owner")
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if CONFIG not in files:
        refuse_other_formats(files, model=describe(ref), base_model=base_model)
        raise BrokenModel(f"{describe(ref)} holds no {CONFIG}, so it is no model transformers can load")
    return RemoteRepo(ref, ref.repo, info.sha, files, licence, base_model)


def offer(ref: ModelRef, *, allow_pickle: bool = False) -> Download:
    """Choose the files to download. Raises as `remote_repo` does, and where there are no weights among them."""
    remote = remote_repo(ref)
    weights = weight_names(
        remote.files, model=describe(remote.ref), allow_pickle=allow_pickle, base_model=remote.base_model
    )
    small = small_files(remote.files)
    total = sum(remote.files[name] for name in (*small, *weights))
    missing = sum(remote.files[name] for name in (*small, *weights) if not (remote.snapshot / name).exists())
    return Download(remote, tuple(small), tuple(weights), total, missing)


def download(wanted: Download, *, progress: bool = True) -> Path:
    """Download the files into the cache and return their folder; an interrupted download continues.

    Raises HubUnreachable when the download stops half-way, OutputError when the disk does not take it.
    """
    from huggingface_hub import snapshot_download

    remote = wanted.remote
    no_bar = _no_bar()
    where: dict[str, Any] = {"cache_dir": cache_root(), "endpoint": _endpoint()}
    with as_kvlite_errors(remote.ref, "the files", resumable=True):
        # by name, so that the cache records the commit of that revision
        revision = remote.ref.revision or DEFAULT_REVISION
        small, weights = list(wanted.small), list(wanted.weights)
        folder = snapshot_download(remote.repo, revision=revision, allow_patterns=small, tqdm_class=no_bar, **where)
        # the weights last: a snapshot whose weights are complete is complete
        commit = Path(folder).name
        bar = None if progress else no_bar
        snapshot_download(remote.repo, revision=commit, allow_patterns=weights, tqdm_class=bar, **where)
    return Path(folder)


def _no_bar() -> type[Any]:
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

    return NoBar


def fetch_small(remote: RemoteRepo, *names: str) -> Path:
    """Fetch small files through the cache and return their folder; one the repository does not have is left out."""
    for name in names:
        if name in remote.files:
            with as_kvlite_errors(remote.ref, name):
                _api().hf_hub_download(remote.repo, name, revision=remote.commit, cache_dir=cache_root())
    return remote.snapshot


def remote_weights(remote: RemoteRepo) -> Weights | None:
    """Read the sizes of the repository's tensors from its safetensors headers; None when it has none."""
    if SINGLE in remote.files:
        shards = {SINGLE}
    elif INDEX in remote.files:
        shards = set(read_index(fetch_small(remote, INDEX) / INDEX).values())
    else:
        return None

    def tensors(shard: str) -> list[dict[str, Any]]:
        found = _api().parse_safetensors_file_metadata(remote.repo, shard, revision=remote.commit)
        return [vars(tensor) for tensor in found.tensors.values()]

    with as_kvlite_errors(remote.ref, "the headers of the weights"), ThreadPoolExecutor(_AT_ONCE) as pool:
        return weigh(chain.from_iterable(pool.map(tensors, shards)))


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _from_card(card: Any) -> tuple[str | None, str | None]:
    """Licence and base model of a card's front matter, whose fields may hold anything."""
    licence, name, base = (getattr(card, key, None) for key in ("license", "license_name", "base_model"))
    if licence == "other" and isinstance(name, str):
        licence = name
    if isinstance(base, list) and base:
        base = base[0]
    return licence if isinstance(licence, str) else None, base if isinstance(base, str) else None
