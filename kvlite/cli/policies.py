"""`kvlite policies`: what can decide which tokens are kept."""

from __future__ import annotations

from kvlite.cli.options import console


def policies() -> None:
    """List the eviction policies, one line each."""
    from kvlite.cache.policy import load_policy, policy_names

    out = console()
    summaries = {name: load_policy(name).summary for name in policy_names()}
    if out.as_json:
        out.json([{"name": name, "summary": summary} for name, summary in summaries.items()])
    elif out.quiet:
        for name in summaries:
            out.line(name)
    else:
        out.table(("POLICY", "WHAT IT KEEPS"), list(summaries.items()))
