"""`kvlite pull`: a model of the Hub, into the Hugging Face cache."""

from __future__ import annotations

from typing import Annotated

import typer

from kvlite.cli.options import AllowPickle, Revision, console


def _complete(incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model

    return complete_model(incomplete)


def pull(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Alias or org/name[@revision].", autocompletion=_complete)
    ],
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Download a model, or what is missing of it, and print the folder it lies in."""
    from kvlite.catalog.files import files_in
    from kvlite.catalog.hub import download, offer, remote_repo
    from kvlite.catalog.names import resolve_model

    out = console()
    ref = resolve_model(model, revision=revision)
    folder = ref.path
    if folder is not None:
        out.note(f"{ref} is on this machine already; there is nothing to download")
    else:
        wanted = offer(remote_repo(ref), allow_pickle=allow_pickle)
        out.note(str(wanted))
        folder = download(wanted, progress=out.has_live_stderr and not out.quiet)
    files = files_in(ref, folder, allow_pickle=allow_pickle)
    if out.as_json:
        out.json({"repo": files.repo, "revision": files.revision, "license": files.license, "folder": str(folder)})
    else:
        out.line(str(folder))
