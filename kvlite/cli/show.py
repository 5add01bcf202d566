"""`kvlite show`: what a model is, before anything of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from kvlite.cli.invocation import Invocation
from kvlite.cli.options import model_argument
from kvlite.cli.signature import only
from kvlite.flags import option
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from kvlite.catalog.files import ModelFacts
    from kvlite.catalog.names import ModelRef
    from kvlite.memory.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowOptions:
    """The model to show, or its licence only."""

    model: str | None = model_argument()
    license: bool = option(False, help="Only the licence, in full where it is here.")


def show(options: Annotated[ModelOptions, only("revision", "offline")], given: ShowOptions, call: Invocation) -> None:
    """Show a model's layers, heads, KV bytes per token, sizes and licence; downloads no weights."""
    from kvlite.catalog.files import model_card, model_facts
    from kvlite.catalog.names import resolve_model

    out = call.console
    ref = resolve_model(call.chosen_model(given.model), revision=options.revision)
    facts = model_facts(ref, offline=options.offline)
    if given.license:
        out.line(_license(ref, facts, options.offline))
        return
    card = model_card(ref, offline=options.offline)
    record = _record(ref, facts) | {"summary": card.summary}
    if out.as_json:
        out.json(record, indent=2)
        return
    for label, value in _lines(record):
        out.line(f"{label:<14}{value}")
    if card.text:
        out.line()
        out.line(card.text if ref.is_demo else card.summary)


def _license(ref: ModelRef, facts: ModelFacts, offline: bool) -> str:
    from kvlite.catalog.card import license_text
    from kvlite.catalog.files import model_card
    from kvlite.catalog.snapshots import cached_snapshot

    folder = ref.path or cached_snapshot(ref.repo or "", ref.revision)
    text = license_text(folder) if folder else None
    if text:
        return text
    link = model_card(ref, offline=offline).license_link
    if link is None or not link.startswith("http"):
        link = f"https://huggingface.co/{ref.repo}" if ref.repo else str(ref.path)
    return f"{facts.license or 'unknown licence'}; see {link}"


def _record(ref: ModelRef, facts: ModelFacts) -> dict[str, Any]:
    from kvlite.errors import ModelError
    from kvlite.memory.shape import ModelShape

    record: dict[str, Any] = {
        "name": str(ref),
        "repo": facts.repo,
        "revision": facts.revision,
        "license": facts.license,
        "weight_bytes": facts.weight_bytes,
        "weight_bytes_by_dtype": dict(facts.by_dtype),
        "parameters": facts.parameters,
        "problem": None,
    }
    try:
        shape = ModelShape.from_config(facts.config, stored_dtype=facts.stored_dtype)
    except ModelError as error:
        return record | {"problem": str(error)}
    return record | _of_shape(shape)


def _of_shape(shape: ModelShape) -> dict[str, Any]:
    kinds = [layer.kind for layer in shape.layers]
    heads = [layer for layer in shape.layers if layer.kv_heads]
    return {
        "family": shape.family,
        "dtype": shape.dtype,
        "layers": {kind: kinds.count(kind) for kind in ("full", "sliding", "state") if kind in kinds},
        "query_heads": shape.query_heads,
        "kv_heads": sorted({layer.kv_heads for layer in heads}),
        "k_dim": sorted({layer.k_dim for layer in heads}),
        "v_dim": sorted({layer.v_dim for layer in heads}),
        "window": shape.max_positions,
        "sliding_window": sorted({layer.window for layer in heads if layer.window}),
        "kv_bytes_per_token": shape.kv_bytes_per_token(),
        "state_bytes_per_row": sum(layer.state_bytes for layer in shape.layers),
    }


def _lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return all that is known, as label and text."""
    from kvlite.memory.format import human_bytes

    def every(key: str) -> str:
        return " or ".join(f"{number:,}" for number in record[key])

    at = f"@{record['revision'][:7]}" if record["revision"] else ""
    weights = "unknown" if record["weight_bytes"] is None else human_bytes(record["weight_bytes"])
    dtypes = ", ".join(f"{dtype} {human_bytes(size)}" for dtype, size in record["weight_bytes_by_dtype"].items())
    lines = [
        ("model", f"{record['repo'] or record['name']}{at}"),
        ("licence", record["license"] or "unknown"),
        ("weights", f"{weights} ({dtypes})" if dtypes else weights),
        ("parameters", "unknown" if record["parameters"] is None else f"{record['parameters']:,}"),
    ]
    if record["problem"]:
        return [*lines, ("problem", record["problem"])]
    sliding = f" (sliding window {every('sliding_window')} tokens)" if record["sliding_window"] else ""
    return [
        *lines,
        ("family", f"{record['family']}, {record['dtype']}"),
        ("layers", ", ".join(f"{count} {kind}" for kind, count in record["layers"].items()) + sliding),
        (
            "heads",
            f"{record['query_heads']} query, {every('kv_heads')} KV; K {every('k_dim')}, V {every('v_dim')} wide",
        ),
        ("KV per token", f"{record['kv_bytes_per_token']:,} bytes"),
        ("window", "unlimited" if record["window"] is None else f"{record['window']:,} tokens"),
    ]
