"""`kvlite ls`: the models that are on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvlite.cli.invocation import Invocation

if TYPE_CHECKING:
    from kvlite.catalog.listing import Listed


def ls(call: Invocation) -> None:
    """List the built-in model and the models in the Hugging Face cache; -q prints what to type for each."""
    from kvlite.catalog.listing import list_models

    out = call.console
    models = list_models()
    if out.as_json:
        out.json([_record(model) for model in models], indent=2)
    elif out.quiet:
        for model in models:
            out.line(model.name)
    else:
        out.table(("NAME", "REPO", "SIZE", "KV/TOK", "MODIFIED", "STATE"), [_row(model) for model in models])
    for model in models:
        if model.problem:
            out.detail(f"{model.name}: {model.problem}")


def _row(model: Listed) -> tuple[str, ...]:
    from datetime import datetime

    from kvlite.memory.format import human_bytes

    kv_bytes = "?" if model.kv_bytes_per_token is None else human_bytes(model.kv_bytes_per_token)
    modified = f"{datetime.fromtimestamp(model.modified_s):%Y-%m-%d %H:%M}"
    return model.name, model.repo or "built-in", human_bytes(model.size_bytes), kv_bytes, modified, model.state


def _record(model: Listed) -> dict[str, Any]:
    from datetime import UTC, datetime

    modified = datetime.fromtimestamp(int(model.modified_s), UTC).isoformat().replace("+00:00", "Z")
    return {
        "name": model.name,
        "repo": model.repo,
        "revision": model.revision,
        "size_bytes": model.size_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "modified": modified,
        "state": model.state,
        "problem": model.problem,
    }
