"""One call of the program: its own flags, where each value came from, its model, its console and its run record."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kvlite.flags import option
from kvlite.options import BUILT_IN_MODEL, ModelOptions

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.record.recorder import Recorder

NEXT_MODEL = "a small demonstration; a real model to try next: qwen2.5-0.5b"
UNNAMED = f"no model is named: the built-in demo answers, {NEXT_MODEL}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOptions:
    """The program's own flags; those of the output may stand after a command's name too."""

    version: bool = option(False, "-V", "--version", from_settings=False, help="Show the version; --json adds others.")
    quiet: bool = option(False, "-q", help="Only the answer, or one id per line.")
    verbose: bool = option(False, "-v", help="Say more on stderr; show tracebacks.")
    color: Literal["auto", "always", "never"] = option("auto", help="When to colour the output.")
    plain: bool = option(False, help="No colour, no moving lines.")
    as_json: bool = option(False, "--json", help="Machine-readable output on stdout.")
    config: Path | None = option(None, metavar="PATH", help="Read only this file.")
    default_model: str | None = option(
        None, metavar="MODEL", variables=("KVLITE_MODEL",), complete="model", help="The model where none is named."
    )


@dataclass
class Invocation:
    """One call: the program's flags as given so far, and `sources`, the origin of each of the command's values."""

    program: ProgramOptions = field(default_factory=ProgramOptions)
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

    def with_model(self, options: ModelOptions) -> ModelOptions:
        """Options with the model they name, else the user's default, else the built-in one.

        An empty name stays what it is: a shell variable that is not set must not choose another model.
        """
        named = options.model
        return options if named is not None else replace(options, model=self.program.default_model or BUILT_IN_MODEL)

    def announce_built_in(self, named: str | None) -> None:
        """Say on stderr that nobody named a model and the built-in one answers; nothing if somebody did."""
        if named is None and not self.program.default_model:
            self.console.note(UNNAMED)

    def start_recorder(self, command: str, report: str) -> Recorder:
        """Start to record `command`, warnings too."""
        from kvlite.record.recorder import Recorder

        recorder = Recorder(command, sys.argv[1:], report=report, warn=self.console.warn)
        self.console.on_warning = recorder.warning
        return recorder
