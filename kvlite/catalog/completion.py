"""Complete the names of models for the shell."""

from contextlib import suppress

from kvlite.catalog.names import DEMO, STORES, alias_of, aliases, fold
from kvlite.catalog.own_aliases import own_aliases
from kvlite.catalog.snapshots import cached_repos, gguf_names, newest_snapshot
from kvlite.catalog.stores import stored_models
from kvlite.errors import UsageError
from kvlite.gguf.header import models_among


def complete_model(incomplete: str, *, is_cached: bool = False) -> list[str]:
    """Complete a model's name for the shell, as it is spelled so far: aliases, the user's first, cached repositories
    and the GGUF files in them, and once a store is named other programs' models; with `is_cached` what can be deleted.
    """
    repos = cached_repos()
    if is_cached:
        found = _spelled(incomplete, [alias.name for repo in repos if (alias := alias_of(repo))])
    else:
        found = [*_spelled(incomplete, [*_own(), DEMO, *aliases()]), *_of_stores(incomplete)]
    repo = incomplete.partition(":")[0]
    if ":" in incomplete and repo in repos and (snapshot := newest_snapshot(repo)) is not None:
        found += [f"{repo}:{stem}" for stem in models_among(gguf_names(snapshot))]
    return [name for name in dict.fromkeys([*found, *repos]) if name.lower().startswith(incomplete.lower())]


def _own() -> list[str]:
    with suppress(UsageError):  # a broken file is told of when a command runs
        return [*own_aliases()]
    return []


def _spelled(incomplete: str, names: list[str]) -> list[str]:
    """Those of the short names that `incomplete` begins, where `:` reads as `-`; its spelling is kept."""
    start = fold(incomplete)
    return [incomplete + name[len(start) :] for name in names if name.startswith(start)]


def _of_stores(incomplete: str) -> list[str]:
    if incomplete.lower().startswith(STORES):
        return [str(model) for model in stored_models() if not model.problem]
    return [*STORES] if incomplete else []
