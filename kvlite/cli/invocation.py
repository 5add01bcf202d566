"""One call of the program: its own flags, where each value came from, and the console they make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvlite.flags import option

if TYPE_CHECKING:
    from kvlite.console import Console

NEXT_MODEL = "a small demonstration; a real model to try next: qwen2.5-0.5b"
UNNAMED = f"no model is named: the built-in demo answers, {NEXT_MODEL}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOptions:
    """The program's own flags, which all but the first and the last may stand after a command's name too."""

    version: bool = option(False, "-V", "--version", from_settings=False, help="Show the version; --json adds others.")
    quiet: bool = option(False, "-q", help="Only the answer, or one id per line.")
    verbose: bool = option(False, "-v", help="Say more on stderr; show tracebacks.")
    color: Literal["auto", "always", "never"] = option("auto", help="When to colour the output.")
    plain: bool = option(False, help="No colour, no moving lines.")
    as_json: bool = option(False, "--json", help="Machine-readable output on stdout.")
    config: Path | None = option(None, metavar="PATH", help="Read only this file.")


@dataclass
class Invocation:
    """One call: the program's flags as given so far, and `sources`, the origin of each of the command's values.

    `console` is built from the flags when it is first asked for. `default_model` is the model of `KVLITE_MODEL` or of a
    config file.
    """

    program: ProgramOptions = field(default_factory=ProgramOptions)
    default_model: str | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @cached_property
    def console(self) -> Console:
        """The console of this call."""
        from kvlite.console import Console

        flags = self.program
        return Console(
            quiet=flags.quiet, verbose=flags.verbose, color=flags.color, plain=flags.plain, as_json=flags.as_json
        )

    def accept(self, name: str, value: Any) -> None:
        """Take the program's flag `name`, if it was given."""
        if value:
            self.program = replace(self.program, **{name: value})

    def is_given(self, name: str) -> bool:
        """True where a flag, a variable or a file gives this option of the command."""
        return self.sources[name] != "default"

    def chosen_model(self, named: str | None) -> str:
        """The model `named` on the command line, else the user's default, else the built-in one.

        An empty name stays what it is: a shell variable that is not set must not choose another model.
        """
        from kvlite.options import BUILT_IN_MODEL

        return named if named is not None else self.default_model or BUILT_IN_MODEL

    def announce_built_in(self, named: str | None) -> None:
        """Say on stderr that nobody named a model and the built-in one answers; nothing if somebody did."""
        if named is None and not self.default_model:
            self.console.note(UNNAMED)
