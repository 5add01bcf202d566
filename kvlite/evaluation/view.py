"""An evaluation for reading: a headline, and a section per suite, shown on the screen and on the page alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kvlite.evaluation.conclusion import conclusion
from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.plots import suite_plots
from kvlite.evaluation.summary import Line, Summary
from kvlite.memory.format import human_bytes
from kvlite.record.page import Section, page
from kvlite.record.table import UNKNOWN, Table

_TITLES = {"right": "RIGHT", "of_full": "OF FULL", "kl": "KL", "agreement": "SAME FIRST", "perplexity": "PERPLEXITY"}
_SHARES = ("right", "of_full", "agreement")


def headline(about: Mapping[str, Any]) -> str:
    """The model, and what it ran on."""
    versions = " ".join(f"{name} {about['versions'][name]}" for name in ("kvlite", "torch", "transformers"))
    weights = about["dtype"] if about["quant"] == "none" else about["quant"]
    return f"{about['model']} · {weights} · {about['device']} · {versions}"


def eval_page(about: Mapping[str, Any], summaries: Sequence[Summary]) -> str:
    """The page of `--html`."""
    sections = [suite_section(summary) for summary in summaries]
    return page(f"kvlite eval {about['model']}", "What the KV budget costs", headline(about), sections)


def suite_section(summary: Summary) -> Section:
    """A suite: what follows from it, its plots and its table."""
    plots, tables = tuple(suite_plots(summary)), (suite_table(summary),)
    return Section(summary.suite.name, conclusion(summary), _about(summary), plots, tables)


def suite_table(summary: Summary) -> Table:
    """Figures with their 95 % intervals, then the first of them by distance."""
    figures = (_TITLES[name] for name in summary.reference.figures)
    columns = ("POLICY", "BUDGET", "T", "SLOTS", *figures, *summary.distances)
    return Table(columns, tuple(_row(line, summary.distances) for line in summary.lines), fixed=3)


def _about(summary: Summary) -> str:
    suite = summary.suite
    made_of, counted = ("texts", "scored tokens") if suite.is_forced else ("conversations", "questions")
    parts = [
        f"{len(summary.reference.results)} {made_of} of up to {summary.tokens:,} tokens",
        f"{summary.reference.count:,} {counted}",
        f"full cache {human_bytes(summary.full_cache_bytes)}",
        "T: prompt tokens fed at once",
        "in brackets: intervals of 95 %",
        f"last columns: {_TITLES[summary.main].lower()} by {summary.unit}",
        f"seed {suite.seed}, {suite.split} words",
    ]
    if summary.unreached:
        parts.insert(2, f"{summary.unreached} more lie behind the model's window and do not count")
    return " · ".join(parts)


def _row(line: Line, distances: Sequence[str]) -> tuple[str, ...]:
    placed = line.placed
    values = {part.label: _value(next(iter(line.figures)), part.estimate.value) for part in line.parts}
    return (
        placed.variant.name,
        placed.budget_text,
        "any" if placed.variant.is_reference else str(placed.plan.chunk),  # the full cache gives the same in any chunks
        f"{placed.plan.slots:,}",
        *(_figure(name, estimate) for name, estimate in line.figures.items()),
        *(values.get(label, UNKNOWN) for label in distances),
    )


def _figure(name: str, estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return UNKNOWN
    if name in _SHARES:
        return f"{estimate.value:.1%} [{estimate.low * 100:.0f}-{estimate.high * 100:.0f}]"
    return f"{_value(name, estimate.value)} [{_value(name, estimate.low)}-{_value(name, estimate.high)}]"


def _value(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{value:.0%}"
    return f"{value:.4f}" if name == "kl" else f"{value:.2f}"
