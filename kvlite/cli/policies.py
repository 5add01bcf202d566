"""`kvlite policies`: what can decide which tokens are kept."""

from __future__ import annotations

from typing import Any

from kvlite.cli.invocation import Invocation
from kvlite.errors import UsageError


def policies(call: Invocation) -> None:
    """List the eviction policies, and the settings that may follow each one's name, with their defaults."""
    from kvlite.cache.policy import policy_names, unused_plug_ins
    from kvlite.cache.policy_text import write_settings

    out = call.console
    for point in unused_plug_ins():
        out.warn(f"the KV policy {point.name!r} of {point.value} is never used: another one has its name")
    found = [_described(name) for name in policy_names()]
    if out.as_json:
        out.json(found)
    elif out.quiet:
        for policy in found:
            out.line(policy["name"])
    else:
        rows = [(policy["name"], policy["summary"] or f"broken: {policy['error']}") for policy in found]
        out.table(("POLICY", "WHAT IT KEEPS"), rows)
        out.line()
        rows = [(policy["name"], write_settings(policy["settings"], ", ")) for policy in found if policy["settings"]]
        out.table(("POLICY", "SETTINGS, as in --kv-policy window:sinks=8"), rows)


def _described(name: str) -> dict[str, Any]:
    """A policy's name, what it keeps and its settings; of a plug-in that cannot be loaded, why."""
    from kvlite.cache.policy import load_policy

    try:
        policy = load_policy(name)
    except UsageError as error:
        return {"name": name, "summary": None, "settings": {}, "error": str(error)}
    return {"name": name, "summary": policy.summary, "settings": policy.settings, "error": None}
