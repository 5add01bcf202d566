"""Fields that several commands share."""

from __future__ import annotations

from typing import Any

from kvlite.flags import argument, option
from kvlite.options import BUILT_IN_MODEL, MODEL


def model_argument() -> Any:
    """A field for the model, given as the argument of a command that does without one."""
    help = f"Alias, org/name[@revision] or folder; without one, the built-in {BUILT_IN_MODEL}."
    return argument(None, metavar="MODEL", complete="model", help=help)


def model_option() -> Any:
    """A field for the model of commands whose other words, or whose input, may name one too.

    KVLITE_MODEL and the config are weaker than these: `Invocation.default_model`.
    """
    help = "Alias, org/name[@revision] or folder."
    return option(None, "-m", metavar="MODEL", heading=MODEL, complete="model", from_settings=False, help=help)
