"""Talk to the Hugging Face Hub: list repositories, read metadata by range requests, download.

huggingface_hub is imported when a function runs. It freezes its environment when first imported, so the cache folder
and the endpoint are passed on each call, as the environment has them now.
"""

import glob
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlite.catalog.config import CONFIG, read_config
from kvlite.catalog.hub_errors import describe, kvlite_errors
from kvlite.catalog.names import ModelRef
from kvlite.catalog.runnable import require_tokenizer, runnable_shape
from kvlite.catalog.snapshots import DEFAULT_REVISION, cache_root, repo_folder
from kvlite.catalog.weights import (
    INDEX,
    SINGLE,
    gguf_files,
    read_index,
    refuse_other_formats,
    small_files,
    text_part,
    weigh,
    weight_names,
)
from kvlite.errors import BrokenModel, HubUnreachable
from kvlite.gguf.folder import require_known
from kvlite.gguf.header import Header, joined, parse_header
from kvlite.memory.format import human_bytes
from kvlite.memory.prediction import Weights

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
    gguf: list[str]
    """The parts of the GGUF file that `ref` means; none where it means other weights."""

    @property
    def snapshot(self) -> Path:
        """The folder of this commit in the cache; it need not exist."""
        return repo_folder(self.repo) / "snapshots" / self.commit


@dataclass(frozen=True, slots=True)
class Download:
    """Files of one commit to download; as text with their size, and how much of it is not in the cache yet."""

    remote: RemoteRepo
    small: list[str]
    weights: list[str]

    def __str__(self) -> str:
        remote, names = self.remote, (*self.small, *self.weights)
        total = sum(remote.files[name] for name in names)
        absent = [name for name in names if not (remote.snapshot / name).exists()]
        missing = sum(remote.files[name] for name in absent)
        # config.json came first, to be looked at
        here = "" if {*names} - {*absent} <= {CONFIG, INDEX} else f", {human_bytes(missing)} of it not here"
        return f"{remote.repo}@{remote.commit[:7]}, licence {remote.license or 'unknown'}, {human_bytes(total)}{here}"


def is_offline(offline: bool = False) -> bool:
    """True where the network must not be used: by `offline`, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return offline or said.upper() in {"1", "ON", "YES", "TRUE"}


def remote_repo(ref: ModelRef) -> RemoteRepo:
    """Ask the Hub for the current commit of `ref`, its files, and access to them.

    Raises ModelNotFound, GatedModel with what to do about it, HubUnreachable, and UnsupportedModel or BrokenModel
    where it has neither a config.json nor a GGUF file.
    """
    assert ref.repo is not None
    if is_offline():
        raise HubUnreachable(
            f"{describe(ref)} cannot be asked for: HF_HUB_OFFLINE is set; unset it, or see `kvlite ls`"
        )
    with kvlite_errors(ref, "the list of files"):
        from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

        info = _api().model_info(ref.repo, revision=ref.revision, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT)
        licence, base_model = _from_card(info.card_data)
        if info.gated:
            with kvlite_errors(ref, "access", licence=licence):
                _api().auth_check(ref.repo)
    if info.sha is None:
        raise BrokenModel(f"{describe(ref)} has no commits yet; ask its owner")
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    gguf = gguf_files(files, ref.quant, model=describe(ref))
    if CONFIG not in files and not gguf:
        refuse_other_formats(files, model=describe(ref), base_model=base_model)
        raise BrokenModel(f"{describe(ref)} holds no {CONFIG}, so it is no model transformers can load")
    return RemoteRepo(ref, ref.repo, info.sha, files, licence, base_model, gguf)


def offer(ref: ModelRef, *, allow_pickle: bool = False) -> Download:
    """Choose the files to download. Raises as `remote_repo` does, and where there are no weights among them."""
    remote = remote_repo(ref)
    if remote.gguf:
        require_known(remote_header(remote))  # before a large file is fetched
    weights = remote.gguf or weight_names(
        remote.files, model=describe(ref), allow_pickle=allow_pickle, base_model=remote.base_model
    )
    if not remote.gguf:
        weights = _require_runnable(remote) or weights
    return Download(remote, small_files(remote.files), weights)


def _require_runnable(remote: RemoteRepo) -> list[str]:
    """Refuse a model that could not be run, or whose weights are not all there, before these are fetched.

    Gives the shards that its index names, none where it has no index.
    """
    name = describe(remote.ref)
    runnable_shape(read_config(fetch_small(remote, CONFIG)), model=name, base_model=remote.base_model)
    require_tokenizer(remote.files, model=name)
    named: set[str] = set()
    if SINGLE not in remote.files and INDEX in remote.files:
        named = set(read_index(fetch_small(remote, INDEX) / INDEX).values())
        if absent := sorted(named - remote.files.keys()):
            more = f" and {len(absent) - 1} more" if absent[1:] else ""
            raise BrokenModel(f"{name} has no {absent[0]}{more}, which its {INDEX} names; ask its owner to upload that")
    return sorted(named)


def download(wanted: Download, *, progress: bool = True) -> Path:
    """Download the files into the cache and return their folder, or the GGUF file; an interrupted one continues.

    Raises HubUnreachable when the download stops half-way, OutputError when the disk does not take it.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

    ref, repo = wanted.remote.ref, wanted.remote.repo
    snapshot_download = partial(_api().snapshot_download, repo, cache_dir=cache_root())
    with kvlite_errors(ref, "the files", resumable=True):
        # the first by name, so that the cache records the commit of that revision
        revision = ref.revision or DEFAULT_REVISION
        # the weights last: a snapshot whose weights are complete is complete
        for names, bar in ((wanted.small, NoBar), (wanted.weights, None if progress else NoBar)):
            if names:
                exactly = [glob.escape(name) for name in names]
                folder = snapshot_download(revision=revision, allow_patterns=exactly, tqdm_class=bar)
                revision = Path(folder).name
    return Path(folder, *wanted.remote.gguf[:1])


def fetch_small(remote: RemoteRepo, *names: str) -> Path:
    """Fetch small files through the cache and return their folder; one the repository does not have is left out."""
    for name in names:
        if name in remote.files:
            with kvlite_errors(remote.ref, name):
                _api().hf_hub_download(remote.repo, name, revision=remote.commit, cache_dir=cache_root())
    return remote.snapshot


def fetch_adapter(ref: ModelRef, *names: str) -> Path:
    """Fetch the files of an adapter, which is no model, into the cache; one that is not there is left out."""
    with kvlite_errors(ref, "the adapter"):
        folder = _api().snapshot_download(
            str(ref.repo), revision=ref.revision, cache_dir=cache_root(), allow_patterns=[*names]
        )
    return Path(folder)


def remote_weights(remote: RemoteRepo, *, is_composite: bool = False) -> Weights | None:
    """Read the sizes of the repository's tensors from its safetensors headers, of a composite those of its text part.

    None when it has none.
    """
    if SINGLE in remote.files:
        shards = {SINGLE}
    elif INDEX in remote.files:
        shards = set(read_index(fetch_small(remote, INDEX) / INDEX).values())
    else:
        return None

    def tensors(shard: str) -> dict[str, Any]:
        found = _api().parse_safetensors_file_metadata(remote.repo, shard, revision=remote.commit)
        return {name: vars(tensor) for name, tensor in found.tensors.items()}

    with kvlite_errors(remote.ref, "the headers of the weights"), ThreadPoolExecutor(_AT_ONCE) as pool:
        held = {name: tensor for part in pool.map(tensors, shards) for name, tensor in part.items()}
    return weigh((text_part(held) if is_composite else held).values())


def remote_header(remote: RemoteRepo) -> Header:
    """Read the header of the repository's GGUF file. Raises as `kvlite.gguf.header.read_header` does."""
    with kvlite_errors(remote.ref, "the header of the GGUF file"):
        return joined([_remote_part(remote, name) for name in remote.gguf])


def _remote_part(remote: RemoteRepo, name: str) -> Header:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    url = hf_hub_url(remote.repo, name, revision=remote.commit, endpoint=_api().endpoint)
    size, wanted = remote.files[name], _FIRST_BYTES
    while True:
        about = build_hf_headers() | {"range": f"bytes=0-{wanted - 1}"}
        with http_stream_backoff("GET", url, headers=about, timeout=HF_HUB_DOWNLOAD_TIMEOUT, max_retries=2) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 and size > wanted:
                raise ValueError(f"parts of files are not given, and {name} has {human_bytes(size)}")
            held = response.read()
        header = parse_header(remote.snapshot / name, held, size)
        if header is not None:
            return header
        if len(held) < min(wanted, size):
            raise ValueError(f"only {len(held)} bytes of {name} came")
        wanted *= 4


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _from_card(card: Any) -> tuple[str | None, str | None]:
    """Licence and base model of a card's front matter, whose fields may hold anything."""
    licence, name, base = (getattr(card, key, None) for key in ("license", "license_name", "base_model"))
    if licence == "other" and isinstance(name, str):
        licence = name
    if isinstance(base, list) and base:
        base = base[0]
    return licence if isinstance(licence, str) else None, base if isinstance(base, str) else None
