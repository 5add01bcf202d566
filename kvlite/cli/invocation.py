"""One call of the program: its own flags, where each value came from, its model, its console and its run record."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvlite.flags import argument, option
from kvlite.options import BUILT_IN_MODEL, MODEL_HELP

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.record.recorder import Recorder

NEXT_MODEL = "a small demonstration; a real model to try next: qwen2.5-0.5b"
UNNAMED = f"no model is named: the built-in demo answers, {NEXT_MODEL}"


def model_argument() -> Any:
    """A field for the model, given as the argument of a command that does without one."""
    help = f"{MODEL_HELP}; without one, the built-in {BUILT_IN_MODEL}."
    return argument(None, metavar="MODEL", complete="model", help=help)


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

    `default_model` is the model of `KVLITE_MODEL` or of a config file.
    """

    program: ProgramOptions = field(default_factory=ProgramOptions)
    default_model: str | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @cached_property
    def console(self) -> Console:
        """The console of this call, made of the flags when it is first asked for."""
        from kvlite.console import Console

        flags = self.program
        return Console(
            quiet=flags.quiet, verbose=flags.verbose, color=flags.color, plain=flags.plain, as_json=flags.as_json
        )

    def is_given(self, name: str) -> bool:
        """True where a flag, a variable or a file gives this option of the command."""
        return self.sources[name] != "default"

    def chosen_model(self, named: str | None) -> str:
        """The model `named` on the command line, else the user's default, else the built-in one.

        An empty name stays what it is: a shell variable that is not set must not choose another model.
        """
        return named if named is not None else self.default_model or BUILT_IN_MODEL

    def announce_built_in(self, named: str | None) -> None:
        """Say on stderr that nobody named a model and the built-in one answers; nothing if somebody did."""
        if named is None and not self.default_model:
            self.console.note(UNNAMED)

    def start_recorder(self, command: str, report: str) -> Recorder:
        """Start to record `command`, warnings too. Raises UsageError where `report` cannot be written."""
        from kvlite.record.recorder import Recorder

        recorder = Recorder(command, sys.argv[1:], report=report, warn=self.console.warn)
        self.console.on_warning = recorder.warning
        return recorder
