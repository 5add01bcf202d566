"""The Hugging Face cache on disk, read without huggingface_hub and without a network.

Layout: `models--org--name/` holds `refs/<revision>` (a text file with a commit), `snapshots/<commit>/` (the files, as
links) and `blobs/`. The cache is shared with every other Hugging Face tool.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvlite.catalog.config import CONFIG, has_tokenizer
from kvlite.catalog.weights import weight_files
from kvlite.errors import OutputError

DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PREFIX = "models--"
_WEIGHTS = "safetensors weights"


def cache_root() -> Path:
    """Return the cache's folder: HF_HUB_CACHE, else `hub` in HF_HOME, else in `$XDG_CACHE_HOME/huggingface`."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not named:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        named = f"{os.environ.get('HF_HOME') or f'{cache}/huggingface'}/hub"
    return Path(os.path.expandvars(named)).expanduser()


def cached_repos() -> list[str]:
    """List the model repositories with anything in the cache, as `org/name`, sorted."""
    names = (path.name.removeprefix(_PREFIX) for path in cache_root().glob(f"{_PREFIX}*"))
    return sorted(name.replace("--", "/", 1) for name in names)


def repo_folder(repo: str) -> Path:
    """Return the cache's folder for a repository; it need not exist."""
    return cache_root() / f"{_PREFIX}{repo.replace('/', '--')}"


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """Find the cached snapshot of a commit, or of the commit a branch or tag last had; it may be incomplete."""
    commit = revision or DEFAULT_REVISION
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (repo_folder(repo) / "refs" / commit).read_text(encoding="ascii", errors="replace").strip()
        except OSError:  # never asked for
            return None
    snapshot = repo_folder(repo) / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def newest_snapshot(repo: str) -> Path | None:
    """Find the snapshot that was last written to, of any commit."""
    found = (repo_folder(repo) / "snapshots").glob("*/")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def missing_parts(snapshot: Path | None, *, allow_pickle: bool) -> list[str]:
    """List what a snapshot lacks: files, `tokenizer`, `safetensors weights`; empty when complete.

    kvlite downloads the weights last, so where these are complete, so are the small files.
    """
    if snapshot is None:
        return [CONFIG, "tokenizer", _WEIGHTS]
    missing = [] if (snapshot / CONFIG).is_file() else [CONFIG]
    missing += [] if has_tokenizer(snapshot) else ["tokenizer"]
    weights = weight_files(snapshot)
    if not weights or (weights[0].endswith(".bin") and not allow_pickle):
        return [*missing, _WEIGHTS]
    return missing + [name for name in weights if not (snapshot / name).is_file()]


def size_on_disk(repo: str) -> int:
    """Count the bytes that the repository takes in the cache, unfinished downloads included."""
    return sum(path.lstat().st_size for path in _own_files(repo))


def modified_s(repo: str) -> float:
    """Return the time of the last change to the repository, in seconds since 1970; 0 without a file."""
    return max((path.lstat().st_mtime for path in _own_files(repo)), default=0.0)


def remove_cached(repo: str, revision: str | None) -> int:
    """Delete one cached revision, or all of the repository; returns the bytes freed.

    Raises OutputError when the cache cannot be changed.
    """
    before = size_on_disk(repo)
    snapshot = cached_snapshot(repo, revision) if revision else None
    try:
        if snapshot is not None:
            from huggingface_hub import scan_cache_dir

            # keeps the blobs that other revisions still need
            scan_cache_dir(cache_root()).delete_revisions(snapshot.name).execute()
        else:  # the whole folder, so that unfinished downloads, which a scan leaves out, go too
            shutil.rmtree(repo_folder(repo))
    except OSError as error:
        raise OutputError(f"cannot delete {repo} from {cache_root()}: {error.strerror}") from error
    return before - size_on_disk(repo)


def gguf_names(folder: Path) -> list[str]:
    """The names of the GGUF files below a folder, as the Hub has them; links that lead nowhere are left out."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() == ".gguf" and path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def remove_files(repo: str, paths: Iterable[Path]) -> int:
    """Delete some files of a snapshot, and their blobs where nothing else links to them; returns the bytes freed.

    Raises OutputError when the cache cannot be changed.
    """
    before = size_on_disk(repo)
    try:
        for path in paths:
            blob = path.resolve()
            path.unlink()
            if not any(other.resolve() == blob for other in repo_folder(repo).rglob("snapshots/*/**/*")):
                blob.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot delete {repo} from {cache_root()}: {error.strerror}") from error
    return before - size_on_disk(repo)


def _own_files(repo: str) -> Iterator[Path]:
    return (path for path in repo_folder(repo).rglob("*") if path.is_file() and not path.is_symlink())
