"""A run record for reading: a verdict and tables of text, and a page with the course of the run drawn."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import groupby
from statistics import median

from kvlite.memory.format import human_bytes
from kvlite.record.page import Section, page
from kvlite.record.plots import in_force, record_plots
from kvlite.record.schema import BatchReport, KVReport, RunRecord
from kvlite.record.table import UNKNOWN, Table, count, kept_percent, percent, size, sparkline

MAX_REQUEST_ROWS = 20

Rows = tuple[tuple[str, str], ...]


def verdict(record: RunRecord) -> str:
    """One sentence: whether the run stayed inside its budget, and its peak."""
    kv = record.kv
    if kv is None:
        return f"No KV cache is recorded: the run ended with exit code {record.exit_code}."
    share = f" ({percent(kv.peak_bytes / kv.budget_bytes)})" if kv.budget_bytes else ""
    said = "Stayed inside" if kv.within_budget else "Went over"
    budgets = [human_bytes(budget) for budget, _ in groupby(in_force(record.timeline, kv.budget_bytes))]
    if len(budgets) > 1:
        share, said = "", f"{said} each budget,"
    peak, reserved = (human_bytes(size, decimals=3) for size in (kv.peak_bytes, kv.reserved_bytes))
    parts = [f"peak KV {peak}{share}", f"reserved {reserved}"]
    vram, device = peak_vram_bytes(record), record.memory.device
    if vram is not None:
        of_total = f" of {human_bytes(device.total_bytes)}" if device else ""
        parts.append(f"peak VRAM {human_bytes(vram)}{of_total}")
    elif record.memory.host_rss_peak_bytes is not None:
        parts.append(f"peak process memory {human_bytes(record.memory.host_rss_peak_bytes)}")
    if device is not None:
        parts.append(f"headroom {human_bytes(device.free_bytes)}")
    return f"{said} {', then '.join(budgets)}: {', '.join(parts)}."


def peak_vram_bytes(record: RunRecord) -> int | None:
    """The most GPU memory the process held, by the driver or by torch's allocator; None without a GPU."""
    torch, device = record.memory.torch, record.memory.device
    readings = (torch.reserved_peak_bytes if torch else None, device.self_bytes if device else None)
    return max((reading for reading in readings if reading is not None), default=None)


def record_tables(record: RunRecord) -> list[Table]:
    """Everything below the verdict; empty tables are left out."""
    phases = tuple((phase.name, human_bytes(phase.peak_bytes)) for phase in record.memory.phases)
    warnings = tuple((warning,) for warning in record.warnings)
    tables = (
        Table(("Course", ""), _course(record)),
        _memory(record),
        Table(("KV cache", ""), _cache(record.kv) if record.kv else ()),
        _events(record),
        _turns(record.kv),
        Table(("Phase", "peak memory"), phases),
        _requests(record),
        Table(("Batch", ""), _batch(record.batch) if record.batch else ()),
        _slowest(record.batch),
        Table(("Environment", ""), _environment(record)),
        Table(("Warnings",), warnings),
    )
    return [table for table in tables if table.rows]


def run_line(record: RunRecord) -> str:
    """The run in one line: id, command line, seconds, exit code."""
    command = shlex.join(("kvlite", *record.argv)) if record.argv else f"kvlite {record.command}"
    return f"{record.run_id} · {command} · {record.seconds:.1f} s · exit {record.exit_code}"


def runs_table(records: Sequence[RunRecord]) -> Table:
    """One row per run."""
    columns = ("RUN", "COMMAND", "MODEL", "STARTED", "TIME", "PEAK KV", "BUDGET", "EVICTED", "EXIT")
    rows = tuple(
        (
            record.run_id,
            record.command,
            (model.alias or model.repo or UNKNOWN) if model else UNKNOWN,
            f"{record.started.astimezone():%Y-%m-%d %H:%M}",
            f"{record.seconds:.1f} s",
            size(kv.peak_bytes if kv else None),
            size(kv.budget_bytes if kv else None),
            count(kv.tokens_evicted if kv else None),
            str(record.exit_code),
        )
        for record, kv, model in ((record, record.kv, record.model) for record in records)
    )
    return Table(columns, rows)


def _memory(record: RunRecord) -> Table:
    terms = [(term.name, term.predicted_bytes, term.measured_bytes) for term in record.memory.terms]
    both = [(predicted, measured) for _, predicted, measured in terms if predicted is not None and measured is not None]
    if len(both) > 1:
        label = "sum" if len(both) == len(terms) else "sum of both"
        terms.append((label, sum(predicted for predicted, _ in both), sum(measured for _, measured in both)))
    rows = tuple((name, size(before), size(after), _error(before, after)) for name, before, after in terms)
    return Table(("Memory", "predicted", "measured", "error"), rows, _identity(record))


def _error(predicted: int | None, measured: int | None) -> str:
    if predicted is None or measured is None:
        return UNKNOWN
    if predicted == measured:
        return "0 %"
    return percent((measured - predicted) / predicted, "+.1%") if predicted else UNKNOWN


def _identity(record: RunRecord) -> str:
    """All of the device's memory as one sum."""
    device = record.memory.device
    if device is None:
        return ""
    if device.self_bytes is None or device.other_processes_bytes is None:
        return f"{human_bytes(device.total_bytes)} on the GPU, {human_bytes(device.free_bytes)} free"
    measured = record.memory.measured_on_device
    return (
        f"{human_bytes(device.total_bytes)} total = {human_bytes(device.free_bytes)} free"
        f" + {human_bytes(device.other_processes_bytes)} other processes + {human_bytes(measured)} measured above"
        f" + {human_bytes(device.self_bytes - measured)} unaccounted"
    )


def _cache(kv: KVReport) -> Rows:
    source = f" ({kv.budget_source})" if kv.budget_source else ""
    rows = [
        ("budget", f"{human_bytes(kv.budget_bytes)} = {kv.budget_bytes:,} bytes{source}"),
        ("reserved", f"{human_bytes(kv.reserved_bytes)} = {kv.reserved_bytes:,} bytes"),
        ("used", f"{human_bytes(kv.live_bytes)} at the end, {human_bytes(kv.peak_bytes)} at the peak"),
        ("reserved, never used", human_bytes(kv.allocated_unused_bytes)),
        ("policy", f"{kv.policy}, state {size(kv.policy_state_bytes)}"),
        ("per token", f"{size(kv.bytes_per_token)} of {kv.dtype}, room for {count(kv.capacity_tokens)} tokens"),
        ("tokens", f"seen {kv.tokens_seen:,}, kept {kv.tokens_kept:,}, evicted {kv.tokens_evicted:,}"),
    ]
    if kv.full_heads and kv.heads:
        room = "" if kv.full_heads == kv.heads else "; the others, which need more, had room"
        rows.append(("full at the end", f"{kv.full_heads:,} of {kv.heads:,} KV heads{room}"))
    if kv.per_layer:
        kept = sorted(layer.kept for layer in kv.per_layer)
        rows.append(("kept per layer", f"min {kept[0]:,.0f}, median {median(kept):,.0f}, max {kept[-1]:,.0f} tokens"))
    if kv.full_cache_bytes is not None:
        times = f", {kv.full_cache_bytes / kv.peak_bytes:.1f} times the peak" if kv.peak_bytes else ""
        rows.append(("a full cache", f"{human_bytes(kv.full_cache_bytes)}{times}"))
    return tuple(rows)


def _course(record: RunRecord) -> Rows:
    """The cache in lines of little bars: its bytes over the run, and the shares kept at its end."""
    kv, points = record.kv, record.timeline
    if kv is None or len(points) < 2:
        return ()
    held = [float(point.kv_bytes) for point in points]
    highest = float(max([*in_force(points, kv.budget_bytes), *held]))
    rows = [
        ("KV bytes", f"{sparkline(held, highest)} up to {human_bytes(int(max(held)))} of {human_bytes(int(highest))}")
    ]
    if kv.tokens_evicted and kv.tokens_seen and kv.full_cache_bytes is not None:
        shares = {
            "layer": [min(1.0, layer.kept / kv.tokens_seen) for layer in kv.per_layer],
            "KV head": [min(1.0, head / kv.tokens_seen) for layer in kv.per_layer for head in layer.heads],
            "turn": [turn.kept for turn in kv.per_turn],
        }
        rows += [
            (f"kept by {name}", f"{sparkline(found, 1.0)} {kept_percent(min(found))} to {kept_percent(max(found))}")
            for name, found in shares.items()
            if len(found) > 1
        ]
    return tuple(rows)


def _events(record: RunRecord) -> Table:
    """The events of the cache: the first eviction, and each time it was exchanged for another."""
    points = [point for point in record.timeline if point.event is not None]
    rows = tuple(
        (f"{point.t_s:.1f} s", count(point.tokens_seen), human_bytes(point.kv_bytes), str(point.event))
        for point in points
    )
    return Table(("At", "tokens seen", "KV", "event"), rows)


def _turns(kv: KVReport | None) -> Table:
    """Share of a chat that was kept when it ended; nothing where all of it was."""
    turns = kv.per_turn if kv and kv.tokens_evicted else []
    shown = turns[:MAX_REQUEST_ROWS]
    rows = tuple(
        (f"{turn.turn}{', pinned' if turn.pinned else ''}", count(turn.tokens), kept_percent(turn.kept))
        for turn in shown
    )
    note = f"{len(turns) - len(shown):,} more turns; --json has all" if len(shown) < len(turns) else ""
    return Table(("Turn", "tokens", "kept"), rows, note)


def _requests(record: RunRecord) -> Table:
    columns = ("Answer", "prompt tok", "new tok", "right / drafted", "evicted", "peak KV", "TTFT", "tok/s", "finish")
    shown = record.requests[:MAX_REQUEST_ROWS]
    hidden = len(record.requests) - len(shown) + record.requests_left_out
    note = f"{hidden:,} more answers; --json has the first {len(record.requests):,}" if hidden else ""
    rows = tuple(
        (
            request.id,
            count(request.prompt_tokens),
            count(request.completion_tokens),
            f"{request.accepted_tokens:,} / {request.drafted_tokens:,}",
            count(request.tokens_evicted),
            human_bytes(request.kv_peak_bytes),
            UNKNOWN if request.ttft_s is None else f"{request.ttft_s:.2f} s",
            UNKNOWN if request.tok_s is None else f"{request.tok_s:.1f}",
            request.finish_reason or UNKNOWN,
        )
        for request in shown
    )
    return Table(columns, rows, note)


def _batch(batch: BatchReport) -> Rows:
    counts = [(name, count(getattr(batch, name))) for name in ("total", "ok", "failed", "resumed", "deduped")]
    if batch.drafted_tokens:
        counts.append(("drafted tokens right", f"{batch.accepted_tokens:,} of {batch.drafted_tokens:,}"))
    return (*counts, ("speed", UNKNOWN if batch.tokens_per_s is None else f"{batch.tokens_per_s:.1f} tok/s"))


def _slowest(batch: BatchReport | None) -> Table:
    """The answers of a batch that took longest; nothing where all are shown anyway."""
    shown = batch.slowest if batch is not None and batch.total > MAX_REQUEST_ROWS else []
    rows = tuple(
        (
            request.id,
            UNKNOWN if request.total_s is None else f"{request.total_s:.2f} s",
            count(request.prompt_tokens),
            count(request.completion_tokens),
            request.finish_reason or UNKNOWN,
        )
        for request in shown
    )
    return Table(("Slowest", "time", "prompt tok", "new tok", "finish"), rows)


def _environment(record: RunRecord) -> Rows:
    host, model = record.host, record.model
    rows: list[tuple[str, str | None]] = []
    if model is not None:
        name = " ".join(part for part in (model.alias, model.repo) if part)
        rows += [
            ("model", f"{name}@{model.revision[:12]}" if model.revision else name),
            ("parameters", None if model.params is None else f"{model.params:,}"),
            ("weights", model.dtype if model.quant in (None, "none") else model.quant),
            ("fused", ", ".join(model.fused)),
            ("not fused", "; ".join(model.refused)),
            ("licence", model.license),
        ]
    rows += [
        ("device", " ".join(part for part in (host.device, host.gpu) if part)),
        ("kernels", host.kernels),
        ("decode steps", host.step),
        ("driver", " ".join(part for part in (host.driver, f"CUDA {host.cuda}" if host.cuda else "") if part)),
        ("host memory", None if host.ram_total_bytes is None else human_bytes(host.ram_total_bytes)),
        ("versions", ", ".join(f"{name} {version}" for name, version in host.versions.items())),
    ]
    return tuple((name, value) for name, value in rows if value)


def record_page(record: RunRecord) -> str:
    """The verdict, the plots and the tables as HTML."""
    kv = record.kv
    plots = record_plots(kv, record.timeline) if kv else ()
    title = f"kvlite {record.command} {record.run_id}"
    sections = [Section(plots=plots, tables=tuple(record_tables(record)))]
    return page(title, verdict(record), run_line(record), sections, is_alarm=kv is not None and not kv.within_budget)
