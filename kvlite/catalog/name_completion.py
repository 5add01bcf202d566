"""Complete model names for the shell's TAB from the alias table and the folders of the cache, which is fast."""

from kvlite.catalog.names import DEMO, alias_of, aliases
from kvlite.catalog.snapshots import cached_repos


def complete_model(incomplete: str) -> list[str]:
    """List aliases and cached repositories that begin with `incomplete`, in any case; `:` reads as `-`."""
    return _beginning_with(incomplete, [DEMO, *aliases()]) + _beginning_with(incomplete, cached_repos())


def complete_cached(incomplete: str) -> list[str]:
    """List as `complete_model` does, but only models in the cache."""
    repos = cached_repos()
    short = [alias.name for repo in repos if (alias := alias_of(repo))]
    return _beginning_with(incomplete, short) + _beginning_with(incomplete, repos)


def _beginning_with(incomplete: str, names: list[str]) -> list[str]:
    start = incomplete.lower().replace(":", "-")
    return [name for name in names if name.lower().startswith(start)]
