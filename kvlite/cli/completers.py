"""Functions that propose values to the shell, by the name in a flag's `complete`; each imports when called."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def _complete_model(incomplete: str) -> list[str]:
    from kvlite.catalog.name_completion import complete_model

    return complete_model(incomplete)


def _complete_cached(incomplete: str) -> list[str]:
    from kvlite.catalog.name_completion import complete_cached

    return complete_cached(incomplete)


def _complete_policy(incomplete: str) -> list[str]:
    from kvlite.cache.policy import policy_names

    return [name for name in policy_names() if name.startswith(incomplete)]


COMPLETERS: Mapping[str, Callable[[str], list[str]]] = {
    "model": _complete_model,
    "cached": _complete_cached,
    "policy": _complete_policy,
}
