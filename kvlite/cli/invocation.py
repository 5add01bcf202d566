"""One call of the program: its global flags, and the console they make. Kept in the command line's context."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer._click.globals import get_current_context

if TYPE_CHECKING:
    from kvlite.console import Console

BUILT_IN_MODEL = "demo"
NEXT_MODEL = "a small demonstration; a real model to try next: qwen2.5-0.5b"
UNNAMED = f"no model is named: the built-in {BUILT_IN_MODEL} answers, {NEXT_MODEL}"

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only the answer, or one id per line.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr; show tracebacks.")]
Color = Annotated[Literal["auto", "always", "never"], typer.Option("--color", help="When to colour the output.")]
Plain = Annotated[bool, typer.Option("--plain", help="No colour, no moving lines.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@dataclass
class Invocation:
    """The global flags as given so far; `console` is built from them when a command first asks for it."""

    quiet: bool = False
    verbose: bool = False
    color: Literal["auto", "always", "never"] = "auto"
    plain: bool = False
    as_json: bool = False
    default_model: str | None = None

    @cached_property
    def console(self) -> Console:
        """The console of this call."""
        from kvlite.console import Console

        return Console(quiet=self.quiet, verbose=self.verbose, color=self.color, plain=self.plain, as_json=self.as_json)

    def accept(self, name: str, value: Any) -> None:
        """Take the global flag `name`, which stands after the command's name, if it was given."""
        if value:
            setattr(self, name, value)


def invocation() -> Invocation:
    """The call that is running."""
    found = get_current_context().find_root().obj
    assert isinstance(found, Invocation)
    return found


def console() -> Console:
    """The console of the call that is running."""
    return invocation().console


def default_model() -> str | None:
    """The model of `KVLITE_MODEL` or of `default_model` in a config file; None when neither names one."""
    return invocation().default_model


def chosen_model(named: str | None) -> str:
    """The model `named` on the command line, else the user's default, else the built-in one.

    An empty name stays what it is: a shell variable that is not set must not choose another model.
    """
    return named if named is not None else default_model() or BUILT_IN_MODEL


def announce_built_in(named: str | None) -> None:
    """Say on stderr that nobody named a model and the built-in one answers; nothing if somebody did."""
    if named is None and not default_model():
        console().note(UNNAMED)
