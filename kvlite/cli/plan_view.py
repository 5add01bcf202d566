"""The answer of `kvlite plan`: as JSON whose keys scripts rely on, or as lines and tables to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvlite.catalog.files import ModelFacts
from kvlite.console import Console
from kvlite.llm.spec import PlanDevice
from kvlite.memory.fit import TURN_TOKENS, Quote, advice
from kvlite.memory.format import human_bytes, size_up
from kvlite.memory.plan import tokens_by_bytes
from kvlite.memory.shape import LayerShape

if TYPE_CHECKING:
    from kvlite.cli.plan import PlanOptions


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A quote for a model on a device, the options that asked for it, and quotes for other budgets."""

    model: str
    facts: ModelFacts
    device: PlanDevice
    quote: Quote
    given: PlanOptions
    sweep: tuple[Quote, ...]


def as_json(report: PlanReport) -> dict[str, Any]:
    """Everything that is known; what is not is null."""
    quote = report.quote
    fit, cache = quote.fit, quote.cache
    shape = fit.shape
    kv_only_tokens, uncapped_tokens = _tokens_by_bytes(quote)
    return {
        "model": report.model,
        "repo": report.facts.repo,
        "revision": report.facts.revision,
        "family": shape.family,
        "dtype": shape.dtype,
        "window": shape.max_positions,
        "layers": list(_layer_groups(report)),
        "kv_dtype": quote.spec.slot_format.name,
        "kv_bytes_per_token": shape.kv_bytes_per_token(quote.spec.slot_format),
        "policy_state_bytes_per_slot": quote.spec.state_bytes_per_slot,
        "budget": str(quote.budget),
        "budget_bytes": cache.budget_bytes if cache else None,
        "kv_budget": size_up(cache.reserved_bytes) if cache else None,
        "rows": cache.rows if cache else fit.most_rows,
        "context": report.given.context,
        "kv_only_tokens": kv_only_tokens,
        "uncapped_tokens": uncapped_tokens,
        "tokens": cache.slots if cache else 0,
        "slots": cache.slots if cache else 0,
        "chunk": cache.chunk if cache else None,
        "capped_by": cache.capped_by if cache else None,
        "reserved_bytes": cache.reserved_bytes if cache else None,
        "full_cache_bytes": shape.full_cache_bytes(shape.max_positions) if shape.max_positions else None,
        "quant": fit.quant,
        "weights_known": fit.weights is not None,
        "terms": [asdict(term) for term in quote.memory.terms],
        "total_bytes": quote.memory.total_bytes,
        "device": asdict(report.device),
        "fits": quote.fits,
        "shortage": quote.shortage,
        "try": advice(quote),
        "solve": report.given.solve,
        "sweep": [_sweep_row(other) for other in report.sweep],
    }


def show(report: PlanReport, out: Console) -> None:
    """Write the report for a reader."""
    quote = report.quote
    for label, text in _headlines(report):
        out.line(f"{label:<21}{text}")
    out.line()
    rows = [
        (term.name, "unknown" if term.predicted_bytes is None else f"{term.predicted_bytes:,}", term.note)
        for term in quote.memory.terms
    ]
    width = max(len(size) for _, size, _ in rows)
    out.table(("TERM", "BYTES".rjust(width), "WHAT"), [(name, size.rjust(width), note) for name, size, note in rows])
    out.line()
    total, free = human_bytes(quote.memory.total_bytes), human_bytes(report.device.free_bytes)
    unknown = "" if quote.fit.weights else " beside the weights, which are unknown"
    if quote.fits:
        out.line(f"fits: {total} of the {free} free on {report.device.name}{unknown}")
    else:
        out.line(f"does not fit: {quote.shortage}")
        for change in advice(quote):
            out.line(f"  try {change}")
    if report.sweep:
        _show_sweep(report, out)


def _headlines(report: PlanReport) -> Iterator[tuple[str, str]]:
    quote = report.quote
    fit, cache = quote.fit, quote.cache
    shape = fit.shape
    commit = f"@{report.facts.revision[:7]}" if report.facts.revision else ""
    named = f" ({report.facts.repo}{commit})" if report.facts.repo else ""
    window = f", window {shape.max_positions:,} tokens" if shape.max_positions else ""
    yield "model", f"{report.model}{named}, {shape.family} in {shape.dtype}{window}"
    for layer, count in Counter(shape.layers).items():
        yield "layers", _layer_text(layer, count)
    per_token = shape.kv_bytes_per_token(quote.spec.slot_format)
    inside = " while inside every window" if any(layer.window for layer in shape.layers) else ""
    checked = "; auto takes it if the model, once loaded, survives it" if quote.takes_another_format else ""
    yield "K and V per token", f"{per_token:,} B in {quote.spec.slot_format.name}{inside}{checked}"
    if shape.max_positions:
        yield "whole window", f"{human_bytes(shape.full_cache_bytes(shape.max_positions))} in an unbounded cache"
    if cache is None:
        yield "KV budget", f"{quote.budget}"
        return
    rows = f" in {cache.rows} equal rows" if cache.rows > 1 else ""
    yield "KV budget", f"{quote.budget} = {cache.budget_bytes:,} B{rows}, of which {cache.reserved_bytes:,} B are used"
    alone, whole = _tokens_by_bytes(quote)
    yield "K and V alone", f"{alone:,} tokens at most"
    yield "with all a slot has", f"{whole:,} tokens: less policy state, positions and staging"
    capped = f", all that the {cache.capped_by} allows" if cache.capped_by else ""
    share = f" on average, {cache.fewest:,} to {max(cache.layer_slots):,} a layer" if cache.fewest < cache.slots else ""
    yield "tokens kept", f"{cache.slots:,} a row{share}, prefilled {cache.chunk} at once{capped}"
    if report.given.context and cache.slots < report.given.context:
        fate = "the others are evicted" if quote.spec.evicts else "there it stops"
        yield "context", f"{cache.slots:,} of {report.given.context:,} tokens are kept; {fate}"
    if report.given.solve == "budget":
        yield "solved", f"--kv-budget {size_up(cache.reserved_bytes)} is enough"
    elif report.given.solve == "context":
        yield "solved", f"--context {cache.slots}" if fit.batch is None else f"--kv-per-seq {cache.slots}tok"
    elif report.given.solve == "batch" and quote.fits:
        yield "solved", f"--batch-size {cache.rows} --kv-per-seq {cache.slots}tok"


def _tokens_by_bytes(quote: Quote) -> tuple[int, int] | tuple[None, None]:
    """Tokens a row would keep whatever the window: if only K and V took bytes, and with all that a slot costs."""
    cache = quote.cache
    if cache is None:
        return None, None
    return tokens_by_bytes(quote.fit.shape, quote.spec, rows=cache.rows, allowed=cache.budget_bytes)


def _layer_groups(report: PlanReport) -> Iterator[dict[str, Any]]:
    """Layers that are alike and have as many slots, counted, in the order of their first one."""
    layers, cache = report.quote.fit.shape.layers, report.quote.cache
    slots = cache.layer_slots if cache else (None,) * len(layers)
    for (layer, held), count in Counter(zip(layers, slots, strict=True)).items():
        yield {"count": count, **asdict(layer), "slots": held}


def _layer_text(layer: LayerShape, count: int) -> str:
    parts = [f"{count} {layer.kind}"]
    if layer.kv_heads:
        dims = f"{layer.k_dim}" if layer.k_dim == layer.v_dim else f"{layer.k_dim} and {layer.v_dim}"
        parts.append(f"{layer.kv_heads} KV heads of {dims}")
    if layer.window:
        parts.append(f"the newest {layer.window:,} tokens")
    if layer.state_bytes:
        parts.append(f"{layer.state_bytes:,} B of constant state")
    return ", ".join(parts)


def _sweep_row(quote: Quote) -> dict[str, Any]:
    tokens = quote.cache.slots if quote.cache else 0
    window = quote.fit.shape.max_positions
    return {
        "budget": str(quote.budget),
        "kv_dtype": quote.spec.slot_format.name,
        "rows": quote.cache.rows if quote.cache else 0,
        "tokens": tokens,
        "window_share": round(tokens / window, 3) if window else None,
        "turns": tokens // TURN_TOKENS,
        "total_bytes": quote.memory.total_bytes,
        "fits": quote.fits,
    }


def _show_sweep(report: PlanReport, out: Console) -> None:
    rows = [_sweep_row(quote) for quote in report.sweep]
    out.line()
    out.table(
        ("BUDGET", "SLOTS IN", "ROWS", "TOKENS", "OF WINDOW", f"TURNS OF {TURN_TOKENS}", "IN ALL", "FITS"),
        [
            (
                row["budget"],
                row["kv_dtype"],
                f"{row['rows']:,}",
                f"{row['tokens']:,}",
                "-" if row["window_share"] is None else f"{row['window_share']:.0%}",
                f"{row['turns']:,}",
                human_bytes(row["total_bytes"]),
                "yes" if row["fits"] else "no",
            )
            for row in rows
        ],
    )
