"""Complete the names of models for the shell."""

from kvlite.catalog.names import DEMO, alias_of, aliases
from kvlite.catalog.snapshots import cached_repos


def complete_model(incomplete: str, *, is_cached: bool = False) -> list[str]:
    """Complete a name for the shell: aliases and cached repositories that begin with `incomplete`; `:` reads as `-`."""
    repos = cached_repos()
    short = [alias.name for repo in repos if (alias := alias_of(repo))] if is_cached else [DEMO, *aliases()]
    start = incomplete.lower().replace(":", "-")
    return [name for name in (*short, *repos) if name.lower().startswith(start)]
