"""`kvlite rm`: frees the disk space of a downloaded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import only
from kvlite.errors import ModelNotFound, UsageError
from kvlite.flags import argument, option
from kvlite.options import ModelOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveOptions:
    """The model to delete."""

    model: str = argument(metavar="MODEL", complete="cached", help="Alias or org/name[@revision].")
    yes: bool = option(False, "-y", from_settings=False, help="Do not ask.")


def rm(options: Annotated[ModelOptions, only("revision")], given: RemoveOptions, call: Invocation) -> None:
    """Delete a model from the Hugging Face cache; with a revision, only that one."""
    from kvlite.catalog.names import resolve_model
    from kvlite.catalog.snapshots import cached_snapshot, remove_cached, repo_folder, size_on_disk
    from kvlite.memory.format import human_bytes

    out = call.console
    ref = resolve_model(given.model, revision=options.revision)
    if ref.repo is None:
        kind = "the built-in model" if ref.is_demo else "a folder of yours"
        raise UsageError(f"{given.model!r} is {kind}; kvlite rm deletes only from the Hugging Face cache")
    what = f"{ref.repo}@{ref.revision}" if ref.revision else ref.repo
    is_cached = cached_snapshot(ref.repo, ref.revision) is not None if ref.revision else repo_folder(ref.repo).is_dir()
    if not is_cached:
        raise ModelNotFound(f"{what} is not in the cache; `kvlite ls` shows what is")
    size = human_bytes(size_on_disk(ref.repo))
    question = f"Delete {what} ({size} in all) from the cache that all Hugging Face tools share?"
    if not given.yes and not out.confirm(question):
        out.note(f"{what} was not deleted")
        return
    freed = remove_cached(ref.repo, ref.revision)
    out.note(f"deleted {what}, freed {human_bytes(freed)}")
    if out.as_json:
        out.json({"repo": ref.repo, "revision": ref.revision, "freed_bytes": freed})
