"""An option declared once: a field of a frozen dataclass with its type, its default and the flag that gives it.

The flags of the command line, the keys of `kvlite.toml`, the `KVLITE_*` variables, completion in the shell and the page
docs/cli.md all follow from such fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any, NamedTuple


class Flag(NamedTuple):
    """The way a field is given: as the option of these `names` (by default the field's own), or as an argument.

    `parse` reads what was given, raising ValueError on what cannot be. `complete` proposes values to the shell: a
    function, or the name of one the command line knows. Without `from_settings` an option must be typed each time: no
    file gives it, and no variable but `variables`, which are read in place of KVLITE_<NAME>.
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


def option(default: Any, *names: str, help: str, **how: Any) -> Any:
    """A field that is given as an option; `how` are fields of Flag."""
    return field(default=default, metadata={"flag": Flag(help=help, names=names, **how)})


def argument(default: Any = MISSING, *, metavar: str, help: str, **how: Any) -> Any:
    """A field that is given by its place on the command line; without a `default` it must be."""
    return field(default=default, metadata={"flag": Flag(help=help, metavar=metavar, is_argument=True, **how)})
