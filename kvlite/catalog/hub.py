"""Talk to the Hugging Face Hub: list repositories, read metadata by range requests, download.

huggingface_hub is imported when a function runs. It freezes its environment when first imported, so the cache folder
and the endpoint are passed on each call, as the environment has them now.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlite.catalog.config import CONFIG
from kvlite.catalog.hub_errors import as_kvlite_errors, describe
from kvlite.catalog.names import ModelRef
from kvlite.catalog.snapshots import DEFAULT_REVISION, cache_root, repo_folder
from kvlite.catalog.weights import (
    INDEX,
    SINGLE,
    Weights,
    gguf_files,
    has_weights,
    read_index,
    refuse_other_formats,
    small_files,
    weigh,
    weight_names,
)
from kvlite.errors import BrokenModel, HubUnreachable
from kvlite.gguf.header import Header, joined, parse_header
from kvlite.memory.format import human_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_AT_ONCE = 8
_FIRST_BYTES = 8 << 20  # of a GGUF file; the header of a vocabulary of 262,144 takes 6 MB


@dataclass(frozen=True, slots=True)
class RemoteRepo:
    """A repository as the Hub describes it at one commit; `files` maps names to bytes."""

    ref: ModelRef
    repo: str
    commit: str
    files: Mapping[str, int]
    license: str | None
    base_model: str | None


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

    Raises ModelNotFound, GatedModel with what to do about it, or HubUnreachable.
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
    return RemoteRepo(ref, ref.repo, info.sha, files, licence, base_model)


def offer(remote: RemoteRepo, *, allow_pickle: bool = False) -> Download:
    """Choose the files to download.

    Raises UnsupportedModel, BrokenModel or ModelNotFound when there is no model among them, or not the one named.
    """
    weights = remote_gguf(remote)
    if not weights:
        _require_config(remote)
        weights = weight_names(
            remote.files, model=describe(remote.ref), allow_pickle=allow_pickle, base_model=remote.base_model
        )
    small = small_files(remote.files)
    snapshot = repo_folder(remote.repo) / "snapshots" / remote.commit
    total = sum(remote.files[name] for name in (*small, *weights))
    missing = sum(remote.files[name] for name in (*small, *weights) if not (snapshot / name).exists())
    return Download(remote, tuple(small), tuple(weights), total, missing)


def download(wanted: Download, *, progress: bool = True) -> Path:
    """Download the files into the cache and return their folder, or the GGUF file; an interrupted one continues.

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
    return Path(folder, weights[0]) if weights[0].lower().endswith(".gguf") else Path(folder)


def _no_bar() -> type[Any]:
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

    return NoBar


def fetch_config(remote: RemoteRepo) -> Path:
    """Fetch the repository's config.json through the cache. Raises as `offer` does without one."""
    _require_config(remote)
    path = fetch_small(remote, CONFIG)
    assert path is not None
    return path


def fetch_small(remote: RemoteRepo, name: str) -> Path | None:
    """Fetch one small file of the repository through the cache; None when it has no such file."""
    if name not in remote.files:
        return None
    with as_kvlite_errors(remote.ref, name):
        path: str = _api().hf_hub_download(remote.repo, name, revision=remote.commit, cache_dir=cache_root())
    return Path(path)


def remote_weights(remote: RemoteRepo) -> Weights | None:
    """Read the sizes of the repository's tensors from its safetensors headers; None when it has none."""
    shards = [SINGLE] if SINGLE in remote.files else []
    if not shards and (index := fetch_small(remote, INDEX)):
        shards = sorted(set(read_index(index).values()))
    if not shards:
        return None
    with as_kvlite_errors(remote.ref, "the headers of the weights"), ThreadPoolExecutor(_AT_ONCE) as pool:
        return weigh(pool.map(lambda shard: _remote_header(remote, shard), shards))


def remote_gguf(remote: RemoteRepo) -> list[str]:
    """The parts of the GGUF file that `remote.ref` means; none where it means the repository's safetensors."""
    if remote.ref.quant is None and CONFIG in remote.files and has_weights(remote.files):
        return []
    return gguf_files(remote.files, remote.ref.quant, model=describe(remote.ref))


def remote_header(remote: RemoteRepo, parts: Sequence[str]) -> Header:
    """Read the header of a GGUF file by range requests. Raises as `kvlite.gguf.header.read_header` does."""
    with as_kvlite_errors(remote.ref, "the header of the GGUF file"):
        return joined([_remote_part(remote, name) for name in parts])


def _remote_part(remote: RemoteRepo, name: str) -> Header:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(remote.repo, name, revision=remote.commit, endpoint=_endpoint())
    size, wanted = remote.files[name], _FIRST_BYTES
    while True:
        response = get_session().get(url, headers=build_hf_headers() | {"range": f"bytes=0-{wanted - 1}"})
        hf_raise_for_status(response)
        header = parse_header(Path(name), response.content, size)
        if header is not None:
            return header
        wanted *= 4


def _require_config(remote: RemoteRepo) -> None:
    if CONFIG not in remote.files:
        refuse_other_formats(remote.files, model=describe(remote.ref), base_model=remote.base_model)
        raise BrokenModel(f"{describe(remote.ref)} holds no {CONFIG}, so it is no model transformers can load")


def _remote_header(remote: RemoteRepo, shard: str) -> dict[str, dict[str, Any]]:
    found = _api().parse_safetensors_file_metadata(remote.repo, shard, revision=remote.commit)
    return {
        name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        for name, tensor in found.tensors.items()
    }


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
