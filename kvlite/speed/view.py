"""A bench report for reading: a headline and tables of text. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvlite.memory.format import human_bytes
from kvlite.record.table import UNKNOWN, Table

if TYPE_CHECKING:
    from kvlite.speed.decoding import Point, Spread
    from kvlite.speed.report import BenchReport


def headline(report: BenchReport) -> str:
    """The model, its cache, and the device."""
    identity, reading = report.identity, report.reading
    versions = " ".join(f"{name} {report.versions.get(name, '?')}" for name in ("kvlite", "torch", "transformers"))
    weights = identity.dtype if identity.quant == "none" else identity.quant
    counts = reading.counts
    cache = f"KV {human_bytes(counts.reserved_bytes)} = {reading.capacity_tokens:,} tok · policy {counts.policy}"
    threads = f", {report.threads} threads" if reading.host.device == "cpu" else ""
    steps = (reading.host.step or "").partition(":")[0]
    place = f"{report.device_name}{threads} ({reading.host.kernels}, {steps} steps)"
    return f"{report.model} · {weights} · {cache} · {place} · {versions}"


def ceilings_line(report: BenchReport) -> str:
    """The most that the device did, in this run."""
    found = report.measurement.ceilings
    assert found is not None
    flops = f"{found.flop_s / 1e12:.3g} TFLOP/s in {found.dtype}"
    return f"this device copies {_rate(found.copy_bytes_s)} and multiplies at {flops}, measured in this run"


def bench_tables(report: BenchReport) -> list[Table]:
    """Everything below the headline; a table with nothing to say is left out."""
    decoding = _points(report, "DECODING AFTER", report.measurement.decoding)
    every = (_start(report), _prompts(report), decoding, _drift(report), _memory(report))
    return [table for table in every if table.rows]


def _start(report: BenchReport) -> Table:
    rows = [(name, f"{seconds:.3f} s") for name, seconds in report.stages.items()]
    return Table(("START-UP", "TOOK"), (*rows, ("together", f"{report.start_s:.3f} s")))


def _prompts(report: BenchReport) -> Table:
    rows = tuple(
        (f"{each.tokens:,} tok", f"{each.tokens_s:,.0f}", _ms(each.first_token.median_s), _between(each.first_token))
        for each in report.measurement.prompts
    )
    return Table(("PROMPT", "TOK/S", "FIRST TOKEN", "ROUNDS BETWEEN"), rows)


def _drift(report: BenchReport) -> Table:
    found = report.measurement
    note = ""
    if found.drift_share is not None:
        first, last = found.drift[0], found.drift[-1]
        note = f"drift from {first.tokens_seen:,} to {last.tokens_seen:,} tokens: {found.drift_share:+.1%} per token"
    return _points(report, "ALL SLOTS FULL, AFTER", found.drift, note)


def _points(report: BenchReport, title: str, points: Sequence[Point], note: str = "") -> Table:
    columns = (title, "SLOTS LIVE", "TOK/S", "A STEP", "99 %", "ROUNDS BETWEEN", "READS", "USES", "OF COPY")
    rows = tuple(
        (
            f"{point.tokens_seen:,} tok",
            f"{point.slots_live:,}",
            f"{point.tokens_s:,.1f}",
            _ms(point.step.median_s),
            _ms(point.step.p99_s),
            _between(point.step),
            UNKNOWN if point.read_bytes is None else human_bytes(point.read_bytes),
            UNKNOWN if point.bytes_s is None else _rate(point.bytes_s),
            UNKNOWN if (share := report.share(point)) is None else f"{share:.1%}",
        )
        for point in points
    )
    return Table(columns, rows, note)


def _memory(report: BenchReport) -> Table:
    reading = report.reading
    names = dict.fromkeys((*report.predicted, *reading.terms))
    rows = [(name, _bytes(report.predicted.get(name)), _bytes(reading.terms.get(name))) for name in names]
    held = "resident set" if reading.host.device == "cpu" else "allocated on the device"
    peaks = ", ".join(f"{phase} {human_bytes(peak)}" for phase, peak in reading.phases.items())
    return Table(("MEMORY", "PLANNED", "MEASURED"), tuple(rows), f"peaks ({held}): {peaks}")


def _bytes(count: int | None) -> str:
    return UNKNOWN if count is None else f"{human_bytes(count)} ({count:,} B)"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"


def _between(spread: Spread) -> str:
    return f"{_ms(spread.low_s)} - {_ms(spread.high_s)}"


def _rate(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:,.2f} GB/s"
