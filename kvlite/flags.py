"""An option declared once: a field of a frozen dataclass with its type, its default and the flag that gives it.

The flags of the command line, the keys of `kvlite.toml`, the `KVLITE_*` variables, completion in the shell and the page
docs/cli.md all follow from such fields.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Text = TypeVar("Text", bound=Sequence[str])


class Flag(NamedTuple):
    """The way a field is given: as the option of these `names` (by default the field's own), or as an argument.

    `parse` reads what was given, raising ValueError on what cannot be. `complete` proposes values to the shell: a
    function, or the name of one the command line knows. Without `from_settings` an option must be typed each time: no
    file gives it, and no variable but `variables`, which are read in place of KVLITE_<NAME>. Of two options one of
    which is `against` the other, that of the stronger source counts: a flag overrules what a file says of either.
    `first` is called with the context and the value before other options are read, whose defaults it may change.
    """

    help: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    heading: str | None = None
    shown_default: str | bool = True
    min: int | None = None
    max: int | None = None
    parse: Callable[[Any], Any] | None = None
    complete: str | Callable[..., list[str]] | None = None
    from_settings: bool = True
    variables: tuple[str, ...] = ()
    is_argument: bool = False
    against: str | None = None
    first: Callable[[Any, Any], None] | None = None


def option(default: Any, *names: str, help: str, **how: Any) -> Any:
    """A field that is given as an option; `how` are fields of Flag."""
    return field(default=default, metadata={"flag": Flag(help=help, names=names, **how)})


def argument(default: Any = MISSING, *, metavar: str, help: str, **how: Any) -> Any:
    """A field that is given by its place on the command line; without a `default` it must be."""
    return field(default=default, metadata={"flag": Flag(help=help, metavar=metavar, is_argument=True, **how)})


def read_text(value: Text) -> Text:
    """Text as it was typed, of one option or of one that is given several times."""
    if any("\udc80" <= character <= "\udcff" for character in "".join(value)):  # how Python hands on other bytes
        raise ValueError("not UTF-8; check the terminal's locale, or give it with -f FILE")
    return value


def read_seconds(value: float) -> float:
    """Seconds, above zero."""
    if not 0 < value < math.inf:  # NaN too
        raise ValueError(f"{value} is no time; give seconds above 0")
    return value


def read_file_name(value: str) -> str:
    """The path of a file that can be written: no folder, and in one."""
    path = Path(value)
    if value == "-":
        raise ValueError("- is no file; give a file's name")
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
        path.exists()
    except OSError as error:  # the name is too long
        raise ValueError(f"{value}: {error.strerror}; give another name") from None
    if is_folder or not has_folder:
        raise ValueError(f"{value}: {'a folder' if is_folder else 'no such folder'}; give a file's name")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{value} may not be written; give another file")
    return value


def read_page_name(value: str) -> str:
    """The path of a page of HTML to write: nothing is there yet, or a page."""
    return _of_kind(read_file_name(value), b"<!doctype html", "a page")


def read_record_name(value: str) -> str:
    """The path of a run record to write: nothing is there yet, or a run record."""
    return _of_kind(read_file_name(value), b'{"schema":"kvlite.report/', "a run record")


def read_summary_name(value: str) -> str:
    """The path of a batch's summary to write: nothing is there yet, or a summary."""
    return _of_kind(read_file_name(value), b'{"total":', "a summary")


def _of_kind(value: str, beginning: bytes, what: str) -> str:
    """The path of a file that may be replaced, as it begins so; raises ValueError on any other."""
    path = Path(value)
    try:
        with path.open("rb") as file:
            begins = file.read(64).lstrip().lower() if path.is_file() else b""
    except OSError:  # nothing is there, or what cannot be read is none of ours
        return value
    if begins and not begins.startswith(beginning):
        raise ValueError(f"{value} holds something else than {what}, and would be lost; give another file")
    return value
