"""`kvlite pull`: a model of the Hub, into the Hugging Face cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import only
from kvlite.flags import argument
from kvlite.options import ModelOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """The model to download."""

    model: str = argument(metavar="MODEL", complete="model", help="Alias or org/name[@revision].")


def pull(
    given: PullOptions, options: Annotated[ModelOptions, only("revision", "allow_pickle")], call: Invocation
) -> None:
    """Download a model, or what is missing of it, and print the folder it lies in."""
    from kvlite.catalog.files import files_in
    from kvlite.catalog.hub import download, offer, remote_repo
    from kvlite.catalog.names import resolve_model

    out = call.console
    ref = resolve_model(given.model, revision=options.revision)
    folder = ref.path
    if folder is not None:
        out.note(f"{ref} is on this machine already; there is nothing to download")
    else:
        wanted = offer(remote_repo(ref), allow_pickle=options.allow_pickle)
        out.note(str(wanted))
        folder = download(wanted, progress=out.has_live_stderr and not out.quiet)
    files = files_in(ref, folder, allow_pickle=options.allow_pickle)
    if out.as_json:
        out.json({"repo": files.repo, "revision": files.revision, "license": files.license, "folder": str(folder)})
    else:
        out.line(str(folder))
