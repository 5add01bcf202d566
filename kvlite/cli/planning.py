"""The work of `kvlite plan`: a quote for what was asked, as JSON whose keys scripts rely on, or as lines and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kvlite.catalog.files import model_facts
from kvlite.catalog.model_files import ModelFiles
from kvlite.console import Console
from kvlite.llm.spec import PlanDevice, RunSpec, find_device
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.fit import Quote, advice, quote
from kvlite.memory.format import human_bytes, short_size
from kvlite.memory.shape import LayerShape
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from kvlite.cli.plan import PlanOptions


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A quote for a model on a device; `context` is the tokens each row should keep, where the user says."""

    facts: ModelFiles
    device: PlanDevice
    quote: Quote
    context: int | None


def plan_report(given: PlanOptions, options: ModelOptions, *, is_budget_given: bool) -> PlanReport:
    """Look for device and model, and plan. Raises the KvliteError that says what is wrong."""
    place, spec = find_device(options.device, given.vram), RunSpec.of(options)
    if given.context is not None:
        wanted = Budget(BudgetKind.TOKENS, given.context)
        spec = replace(spec, row_budget=wanted)
        if not is_budget_given:
            spec = replace(spec, budget=wanted if given.batch_size is None else Budget(BudgetKind.AUTO))
    facts = model_facts(spec.ref, offline=options.offline)
    return PlanReport(facts, place, quote(spec.fit(facts, place, given.batch_size), spec.budget), given.context)


def as_json(report: PlanReport) -> dict[str, Any]:
    """Everything that is known; what is not is null."""
    found = report.quote
    fit, cache = found.fit, found.cache
    shape = fit.shape
    return {
        "model": str(report.facts.ref),
        "repo": report.facts.repo,
        "revision": report.facts.revision,
        "as_of": report.facts.as_of,
        "family": shape.family,
        "dtype": shape.dtype,
        "window": shape.max_positions,
        "short_window": shape.short_positions,
        "layers": layer_groups(shape.layers, cache.head_slots if cache else (None,) * len(shape.layers)),
        "kv_dtype": found.spec.slot_format.name,
        "kv_bytes_per_token": shape.kv_bytes_per_token(found.spec.slot_format),
        "policy_state_bytes_per_slot": found.spec.state_bytes_per_slot,
        "budget": str(found.budget),
        "kv_budget": short_size(cache.reserved_bytes, up=True) if cache else None,
        "rows": cache.rows if cache else fit.most_rows,
        "context": report.context,
        "tokens": cache.slots if cache else 0,
        **{name: getattr(cache, name, None) for name in ("budget_bytes", "reserved_bytes", "chunk", "capped_by")},
        "full_cache_bytes": shape.full_cache_bytes(shape.max_positions) if shape.max_positions else None,
        "quant": fit.quant,
        "held_in": fit.held_in,
        "weights_known": fit.weights is not None,
        "terms": [asdict(term) for term in found.memory.terms],
        "total_bytes": found.memory.total_bytes,
        "device": asdict(report.device),
        "fits": found.fits,
        "shortage": found.shortage,
        "try": advice(found),
    }


def show(report: PlanReport, out: Console) -> None:
    """Write the report for a reader."""
    found = report.quote
    for label, text in _headlines(report):
        out.line(f"{label:<21}{text}")
    out.line()
    rows = [
        (term.name, "unknown" if term.predicted_bytes is None else f"{term.predicted_bytes:,}", term.note)
        for term in found.memory.terms
    ]
    width = max(len(size) for _, size, _ in rows)
    out.table(("TERM", "BYTES".rjust(width), "WHAT"), [(name, size.rjust(width), note) for name, size, note in rows])
    out.line()
    total, free = human_bytes(found.memory.total_bytes), human_bytes(report.device.free_bytes)
    unknown = "" if found.fit.weights else " beside the weights, which are unknown"
    if found.fits:
        out.line(f"fits: {total} of the {free} free on {report.device.name}{unknown}")
    else:
        out.line(f"does not fit: {found.shortage}")
        for change in advice(found):
            out.line(f"  try {change}")


def _headlines(report: PlanReport) -> Iterator[tuple[str, str]]:
    found, cache, shape = report.quote, report.quote.cache, report.quote.fit.shape
    commit = f"@{report.facts.revision[:7]}" if report.facts.revision else ""
    named = f" ({report.facts.repo}{commit})" if report.facts.repo else ""
    window = f", window {shape.max_positions:,} tokens" if shape.max_positions else ""
    yield "model", f"{report.facts.ref}{named}, {shape.family} in {found.fit.held_in}{window}"
    if report.facts.as_of:
        yield "as of", f"{report.facts.as_of}, from kvlite's own table: the Hub was not asked"
    if shape.factors:
        yield "positions", shape.factors
    for group in layer_groups(shape.layers, (None,) * len(shape.layers)):
        yield "layers", layer_text(group)
    per_token = shape.kv_bytes_per_token(found.spec.slot_format)
    inside = " while inside every window" if any(layer.window for layer in shape.layers) else ""
    checked = "; auto takes it if the model, once loaded, tolerates it" if found.takes_another_format else ""
    yield "K and V per token", f"{per_token:,} B in {found.spec.slot_format.name}{inside}{checked}"
    if shape.max_positions:
        yield "whole window", f"{human_bytes(shape.full_cache_bytes(shape.max_positions))} in an unbounded cache"
    if cache is None:
        yield "KV budget", f"{found.budget}"
        return
    rows = f" in {cache.rows} equal rows" if cache.rows > 1 else ""
    yield "KV budget", f"{found.budget} = {cache.budget_bytes:,} B{rows}, of which {cache.reserved_bytes:,} B are used"
    capped = f", all that the {cache.capped_by} allows" if cache.capped_by else ""
    full = [heads for layer, heads in zip(shape.layers, cache.head_slots, strict=True) if layer.kind == "full"]
    least, most = min(map(min, full), default=cache.slots), max(map(max, full), default=cache.slots)
    of = "head" if any(len(set(heads)) > 1 for heads in full) else "layer"
    share = f" on average, {least:,} to {most:,} a {of}" if least < most else ""
    yield "tokens kept", f"{cache.slots:,} a row{share}, prefilled {cache.chunk} at once{capped}"
    if report.context and cache.slots < report.context:
        fate = "the others are evicted" if found.spec.evicts else "there it stops"
        yield "context", f"{cache.slots:,} of {report.context:,} tokens are kept; {fate}"


def layer_groups(layers: Sequence[LayerShape], slots: Sequence[tuple[int, ...] | None]) -> list[dict[str, Any]]:
    """Layers that are alike and have as many slots, counted, in the order of their first one.

    `slots` are those of each KV head; what is given as "slots" is their mean.
    """
    counted = Counter(zip(layers, slots, strict=True))
    return [
        {
            "count": count,
            **asdict(layer),
            "slots": None if heads is None else sum(heads) // max(1, len(heads)),
            "head_slots": heads,
        }
        for (layer, heads), count in counted.items()
    ]


def layer_text(group: Mapping[str, Any]) -> str:
    """A group of `layer_groups` for reading."""
    parts = [f"{group['count']} {group['kind']}"]
    if group["kv_heads"]:
        k_dim, v_dim = group["k_dim"], group["v_dim"]
        parts.append(f"{group['kv_heads']} KV heads of {k_dim if k_dim == v_dim else f'{k_dim} and {v_dim}'}")
    if group["window"]:
        parts.append(f"the newest {group['window']:,} tokens")
    if group["state_bytes"]:
        parts.append(f"{group['state_bytes']:,} B of constant state")
    return ", ".join(parts)
