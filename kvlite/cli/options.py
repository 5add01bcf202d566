"""What commands make of options: fields and completions that several share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvlite.options import BUILT_IN_MODEL, MODEL, argument, option


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


def _complete_model(incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model

    return complete_model(incomplete)


def _complete_cached(incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_cached

    return complete_cached(incomplete)


def _complete_policy(incomplete: str) -> list[str]:
    from kvlite.cache.policy import policy_names

    return [name for name in policy_names() if name.startswith(incomplete)]


COMPLETERS: Mapping[str, Callable[[str], list[str]]] = {
    "model": _complete_model,
    "cached": _complete_cached,
    "policy": _complete_policy,
}
"""What a shell is proposed, by the name that a field's flag gives."""
