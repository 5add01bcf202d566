"""`kvlite policies`: what can decide which tokens are kept."""

from __future__ import annotations

from kvlite.cli.invocation import Invocation
from kvlite.errors import UsageError


def policies(call: Invocation) -> None:
    """List the eviction policies, one line each."""
    from kvlite.cache.policy import policy_names

    out = call.console
    found = [_described(name) for name in policy_names()]
    if out.as_json:
        out.json(found)
    elif out.quiet:
        for policy in found:
            out.line(str(policy["name"]))
    else:
        rows = [(str(policy["name"]), policy["summary"] or f"broken: {policy['error']}") for policy in found]
        out.table(("POLICY", "WHAT IT KEEPS"), rows)


def _described(name: str) -> dict[str, str | None]:
    """A policy's name and what it keeps; of a plug-in that cannot be loaded, why."""
    from kvlite.cache.policy import load_policy

    try:
        return {"name": name, "summary": load_policy(name).summary, "error": None}
    except UsageError as error:
        return {"name": name, "summary": None, "error": str(error)}
