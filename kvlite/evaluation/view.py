"""What a reader sees of a report: headlines, and tables of text. Used on the screen and in the page alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.report import Report
from kvlite.evaluation.summary import Line, Summary
from kvlite.evaluation.verdict import verdict
from kvlite.memory.format import human_bytes

_TITLES = {"right": "RIGHT", "of_full": "OF FULL", "kl": "KL", "agreement": "SAME FIRST", "perplexity": "PERPLEXITY"}
_SHARES = ("right", "of_full", "agreement")


@dataclass(frozen=True, slots=True)
class Table:
    """A suite: its title, what it was made of, the columns and rows, and what follows."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    verdict: str


def headline(report: Report) -> str:
    """Which model, and on what it ran."""
    versions = " ".join(f"{name} {report.versions[name]}" for name in ("kvlite", "torch", "transformers"))
    weights = report.dtype if report.quant == "none" else report.quant
    return f"{report.model} · {weights} · {report.device} · {versions}"


def table(summary: Summary) -> Table:
    """A suite's table: figures with their 95 % intervals, then the first of them by distance."""
    first = summary.reference
    parts = {part.upto: part.label for line in summary.lines for part in line.parts}
    figures = tuple(_TITLES[name] for name in first.figures)
    columns = ("POLICY", "BUDGET", "SLOTS", "T", *figures, *parts.values())
    rows = tuple(_row(line, tuple(parts)) for line in summary.lines)
    return Table(summary.result.suite.name, _about(summary), columns, rows, verdict(summary))


def _about(summary: Summary) -> str:
    suite, result = summary.result.suite, summary.result
    counted = "scored tokens" if suite.is_forced else "questions"
    made_of = "texts" if suite.is_forced else "conversations"
    parts = [
        f"{len(result.measured[0].results)} {made_of} of up to {result.tokens:,} tokens",
        f"{summary.reference.count:,} {counted}",
        f"full cache {human_bytes(result.full_cache_bytes)}",
        "T: prompt tokens fed at once",
        f"last columns: {_TITLES[next(iter(summary.reference.figures))].lower()} by {summary.unit}",
        f"seed {suite.seed}, {suite.split} words",
    ]
    if summary.unreached:
        parts.insert(2, f"{summary.unreached} more lie behind the model's window and do not count")
    return " · ".join(parts)


def _row(line: Line, uptos: tuple[int | None, ...]) -> tuple[str, ...]:
    placed = line.placed
    by_upto = {part.upto: part.estimate.value for part in line.parts}
    main = next(iter(line.figures))
    is_any = placed.variant.is_reference  # the full cache gives the same in any chunks
    return (
        placed.variant.name,
        placed.budget_text,
        f"{placed.plan.slots:,}",
        "any" if is_any else str(placed.plan.chunk),
        *(_figure(name, estimate) for name, estimate in line.figures.items()),
        *(_value(main, by_upto[upto]) if upto in by_upto else "-" for upto in uptos),
    )


def _figure(name: str, estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    if name in _SHARES:
        return f"{estimate.value:.1%} [{estimate.low * 100:.1f}-{estimate.high * 100:.1f}]"
    return f"{_value(name, estimate.value)} [{_value(name, estimate.low)}-{_value(name, estimate.high)}]"


def _value(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{value:.0%}"
    return f"{value:.4f}" if name == "kl" else f"{value:.2f}"
