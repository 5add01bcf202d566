"""One call of the program: its own flags, where each value came from, its model, its console and its run record."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvlite.console import Console
from kvlite.flags import option
from kvlite.options import BUILT_IN_MODEL, ModelOptions

if TYPE_CHECKING:
    from kvlite.record.recorder import Recorder

NEXT_MODEL = "a small demonstration; for a real model: `kvlite pull smollm2-135m`"
UNNAMED = f"no model is named: the built-in demo answers, {NEXT_MODEL}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOptions:
    """The program's own flags beside those of its console."""

    version: bool = option(False, "-V", "--version", from_settings=False, help="Show the version; --json adds others.")
    config: Path | None = option(
        None, metavar="PATH", from_settings=False, variables=("KVLITE_CONFIG",), help="Read only this file."
    )
    default_model: str | None = option(
        None, metavar="MODEL", variables=("KVLITE_MODEL",), complete="model", help="The model where none is named."
    )


@dataclass
class Invocation:
    """One call: its console, the default model, and `sources`, the origin of each of the command's values."""

    console: Console = field(default_factory=Console)
    default_model: str | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def is_given(self, name: str) -> bool:
        """True where a flag, a variable or a file gives this option of the command."""
        return self.sources[name] != "default"

    def with_model(self, options: ModelOptions) -> ModelOptions:
        """Options with the model they name, else the user's default, else a small one that is here.

        An empty name stays what it is: a shell variable that is not set must not choose another model.
        """
        from kvlite.catalog.files import unnamed_model

        named = options.model
        return options if named is not None else replace(options, model=self.default_model or unnamed_model())

    def announce_unnamed(self, named: str | None) -> None:
        """Say on stderr that nobody named a model and which one answers; nothing if somebody did."""
        from kvlite.catalog.files import unnamed_model

        if named is None and not self.default_model:
            model = unnamed_model()
            self.console.note(UNNAMED if model == BUILT_IN_MODEL else f"no model is named: {model} answers")

    def start_recorder(self, command: str, report: str) -> Recorder:
        """Start to record `command`, warnings too."""
        from kvlite.record.recorder import Recorder

        recorder = Recorder(command, sys.argv[1:], report=report, warn=self.console.warn)
        self.console.on_warning = recorder.warning
        return recorder
