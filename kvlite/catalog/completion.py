"""Model names for the shell's TAB: the alias table and the folders of the cache, and nothing slower."""

from kvlite.catalog.names import DEMO, aliases
from kvlite.catalog.snapshots import cached_repos


def complete_model(incomplete: str) -> list[str]:
    """Aliases and cached repositories that begin with `incomplete`, whatever its case; `:` reads as `-`."""
    start = incomplete.lower()
    short = [name for name in (DEMO, *aliases()) if name.startswith(start.replace(":", "-"))]
    return short + [repo for repo in cached_repos() if repo.lower().startswith(start)]
