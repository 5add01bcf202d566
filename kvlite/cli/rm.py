"""`kvlite rm`: frees the disk space of a downloaded model."""

from __future__ import annotations

from typing import Annotated

import typer

from kvlite.cli.options import Revision, console
from kvlite.errors import ModelNotFound, UsageError


def _complete(incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_cached

    return complete_cached(incomplete)


def rm(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Alias or org/name[@revision].", autocompletion=_complete)
    ],
    revision: Revision = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", allow_from_autoenv=False, help="Do not ask.")] = False,
) -> None:
    """Delete a model from the Hugging Face cache; with a revision, only that one."""
    from kvlite.catalog.names import resolve_model
    from kvlite.catalog.snapshots import cached_snapshot, remove_cached, repo_folder, size_on_disk
    from kvlite.memory.format import human_bytes

    out = console()
    ref = resolve_model(model, revision=revision)
    if ref.repo is None:
        kind = "the built-in model" if ref.is_demo else "a folder of yours"
        raise UsageError(f"{model!r} is {kind}; kvlite rm deletes only from the Hugging Face cache")
    what = f"{ref.repo}@{ref.revision}" if ref.revision else ref.repo
    is_cached = cached_snapshot(ref.repo, ref.revision) is not None if ref.revision else repo_folder(ref.repo).is_dir()
    if not is_cached:
        raise ModelNotFound(f"{what} is not in the cache; `kvlite ls` shows what is")
    size = human_bytes(size_on_disk(ref.repo))
    question = f"Delete {what} ({size} in all) from the cache that all Hugging Face tools share?"
    if not yes and not out.confirm(question):
        out.note(f"{what} was not deleted")
        return
    freed = remove_cached(ref.repo, ref.revision)
    out.note(f"deleted {what}, freed {human_bytes(freed)}")
    if out.as_json:
        out.json({"repo": ref.repo, "revision": ref.revision, "freed_bytes": freed})
