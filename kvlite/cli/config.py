"""`kvlite config`: the settings that files and variables give; where the user's file is, and an editor for it."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvlite.cli.invocation import Invocation
from kvlite.cli.settings import PROJECT_FILE
from kvlite.errors import UsageError
from kvlite.flags import argument

_FIRST = """\
# The settings of kvlite: every option of every command, under its long name. `kvlite COMMAND --help` lists them.
# default-model = "smollm2-135m"
# kv-budget = "2GB"
# [batch]
# max-tokens = 256
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOptions:
    """The word that says what to do."""

    action: Literal["show", "path", "edit"] = argument(
        "show", metavar="show|path|edit", help="Show the settings, print the file's path, or open it in $EDITOR."
    )


def config(given: ConfigOptions, call: Invocation) -> None:
    """Show what settings files and variables say, and where the user's file is; edit it."""
    from platformdirs import user_config_path

    out, path = call.console, user_config_path("kvlite") / "config.toml"
    if given.action == "path":
        out.line(str(path))
    elif given.action == "edit":
        _edit(path)
    elif out.as_json:
        out.json({"files": {str(file): _text(file) for file in _files(path)}, "variables": _variables()}, indent=2)
    else:
        for file in _files(path):
            out.line(f"# {file}")
            out.line(_text(file).strip())
        for name, value in _variables().items():
            out.line(f"{name}={value}")
        if not _files(path) and not _variables():
            out.note(f"no settings: {path} is not there; `kvlite config edit` begins it")


def _files(path: Path) -> list[Path]:
    return [file for file in (path, Path(PROJECT_FILE)) if file.is_file()]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def _variables() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("KVLITE_")}


def _edit(path: Path) -> None:
    """Open the file, begun where there is none, in the user's editor. Raises UsageError where that cannot be."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(_FIRST, encoding="utf-8")
        done = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot edit {path} with {editor}: {error}; set EDITOR") from None
    if done.returncode:
        raise UsageError(f"{editor} ended with {done.returncode}; {path} may not be as you want it")
