"""An evaluation for reading, a section per suite on the screen and on the page alike; and as JSON for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kvlite.evaluation.conclusion import conclusion, recommendation
from kvlite.evaluation.journal import Answered
from kvlite.evaluation.summary import Estimate, Line, Summary
from kvlite.memory.format import counted, human_bytes
from kvlite.record.page import WIDTH, Curve, Mark, Plot, Section, page, round_ticks, y_at
from kvlite.record.table import UNKNOWN, Table

_TITLES = {
    "of_full": "OF FULL",
    "right": "RIGHT",
    "nll": "NLL",
    "free": "FREE",
    "free_of_full": "FREE OF FULL",
    "kl": "KL",
    "agreement": "SAME FIRST",
    "perplexity": "PERPLEXITY",
}
_SHARES = ("of_full", "right", "free", "free_of_full", "agreement")
_AXES = {"of_full": "right answers", "kl": "nats from the full cache", "perplexity": "perplexity"}
_APART = 7.0  # the most between the intervals of two variants, which stand beside each other at one place

Points = Sequence[tuple[str, Mapping[str, Estimate]]]
"""Curves: a variant's name and its values by the label of their place on the x axis."""


def headline(about: Mapping[str, Any]) -> str:
    """The model, and what it ran on."""
    versions = " ".join(f"{name} {about['versions'][name]}" for name in ("kvlite", "torch", "transformers"))
    weights = about["dtype"] if about["quant"] == "none" else about["quant"]
    return f"{about['model']} · {weights} · {about['device']} · {versions}"


def eval_page(about: Mapping[str, Any], summaries: Sequence[Summary]) -> str:
    """The page of `--html`."""
    sections = [suite_section(summary) for summary in summaries]
    title = f"{headline(about)}. {recommendation(summaries)}"
    return page(f"kvlite eval {about['model']}", "What the KV budget costs", title, sections)


def suite_section(summary: Summary) -> Section:
    """A suite: what follows from it, its plots and its table."""
    plots, tables = tuple(suite_plots(summary)), (suite_table(summary),)
    return Section(summary.suite.name, conclusion(summary), _about(summary), plots, tables)


def suite_table(summary: Summary) -> Table:
    """Figures with their 95 % intervals, then the first of them by distance."""
    figures = (_TITLES[name] for name in summary.reference.figures)
    distances = list(dict.fromkeys(part.label for line in summary.lines for part in line.parts))
    columns = ("POLICY", "BUDGET", "FORMAT", "T", "SLOTS", *figures, *distances)
    return Table(columns, tuple(_row(summary, line, distances) for line in summary.lines), fixed=2)


def _about(summary: Summary) -> str:
    suite = summary.suite
    made_of, asked = ("text", "scored token") if suite.is_forced else ("item", "question")
    by = "" if suite.is_forced else "right answers "
    parts = [
        f"{counted(len(summary.reference.results), made_of)} of up to {summary.tokens:,} tokens",
        counted(summary.reference.count, asked),
        f"full cache {human_bytes(summary.full_cache_bytes)}",
        "T: prompt tokens fed at once",
        "in brackets: intervals of 95 %",
        f"last columns: {by}by {summary.unit}",
        f"seed {suite.seed}",
    ]
    if summary.guessed:
        parts.insert(2, f"{summary.guessed} more can be guessed and do not count")
    return " · ".join(parts)


def _row(summary: Summary, line: Line, distances: Sequence[str]) -> tuple[str, ...]:
    placed = line.placed
    shown = next(iter(line.figures))
    values = {part.label: _value(shown, part.estimate.value) for part in line.parts}
    return (
        placed.variant.name,
        summary.reference_name if placed.variant.is_reference and placed.variant.policy.evicts else placed.budget_text,
        placed.spec.slot_format.name,
        "any"
        if not placed.variant.policy.evicts
        else str(placed.plan.chunk),  # the full cache gives the same in any chunks
        f"{placed.plan.slots:,}",
        *(_figure(name, estimate) for name, estimate in line.figures.items()),
        *(values.get(label, UNKNOWN) for label in distances),
    )


def _figure(name: str, estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return UNKNOWN
    if math.isnan(estimate.low):
        return f"{estimate.value:.1%}" if name in _SHARES else _value(name, estimate.value)
    if name in _SHARES:
        return f"{estimate.value:.1%} [{estimate.low * 100:.0f}-{estimate.high * 100:.0f}]"
    return f"{_value(name, estimate.value)} [{_value(name, estimate.low)}-{_value(name, estimate.high)}]"


def _value(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{value:.0%}"
    return f"{value:.4f}" if name == "kl" else f"{value:.2f}"


def suite_plots(summary: Summary) -> list[Plot]:
    """By budget where there are several; then by distance, one plot per budget."""
    plots = []
    budgets = summary.by_budget
    if len(budgets) > 1:
        found = {summary.reference.placed.variant.name: dict.fromkeys(budgets, summary.reference.main)}
        for budget, lines in budgets.items():
            for name, line in lines.items():
                found.setdefault(name, {})[budget] = line.main
        plots.append(_plot(summary, ("By budget", "budget"), list(budgets), list(found.items())))
    groups: dict[str, list[Line]] = {}
    for line in summary.lines[1:]:
        groups.setdefault(line.placed.budget_text, []).append(line)
    for title, others in (groups or {"everything": []}).items():
        shown = (summary.reference, *others)
        points = [(line.placed.variant.name, {part.label: part.estimate for part in line.parts}) for line in shown]
        labels = list(dict.fromkeys(label for _, parts in points for label in parts))
        plots.append(_plot(summary, (title, summary.unit), labels, points))
    return plots


def _plot(summary: Summary, titles: tuple[str, str], labels: Sequence[str], points: Points) -> Plot:
    """Curves over places on the x axis, which are equally far from each other; the reference is in every plot."""
    step = WIDTH / max(1, len(labels))
    places = {label: round((index + 0.5) * step, 1) for index, label in enumerate(labels)}
    apart = min(_APART, 0.6 * step / len(points))
    ends = _axis(summary)
    names = list(dict.fromkeys(line.placed.variant.name for line in summary.lines))
    curves = []
    for index, (name, found) in enumerate(points):
        aside = (index - (len(points) - 1) / 2) * apart
        marks = tuple(
            Mark(round(places[label] + aside, 1), y_at(each.value, ends), *_interval(each, ends))
            for label, each in found.items()
            if not math.isnan(each.value)
        )
        curves.append(Curve(name, names.index(name), marks))
    x_ticks = tuple((at, label) for label, at in places.items())
    y_ticks = tuple((y_at(value, ends), f"{value:g}" if summary.suite.is_forced else f"{value:.0%}") for value in ends)
    title, x_title = titles
    return Plot(title, x_title, _AXES[summary.main], x_ticks, y_ticks, tuple(curves))


def _interval(estimate: Estimate, ends: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """The beginning and end of an interval on the y axis."""
    return (None, None) if math.isnan(estimate.low) else (y_at(estimate.low, ends), y_at(estimate.high, ends))


def _axis(summary: Summary) -> list[float]:
    """The ticks of the y axis, the same in all plots of a suite: round numbers, with every interval between them."""
    if not summary.suite.is_forced:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    estimates = [line.main for line in summary.lines] + [part.estimate for line in summary.lines for part in line.parts]
    ends = [end for each in estimates for end in (each.low, each.high, each.value) if math.isfinite(end)]
    lowest = min(ends, default=0.0) if summary.main == "perplexity" else 0.0
    return round_ticks(lowest, max(ends, default=1.0))


def eval_json(about: Mapping[str, Any], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Everything, the single answers included; `about` says which model was measured and on what."""
    suites = [_suite(summary) for summary in summaries]
    return {"schema": "kvlite.eval/2", **about, "recommendation": recommendation(summaries), "suites": suites}


def _suite(summary: Summary) -> dict[str, Any]:
    return {
        **asdict(summary.suite),
        "tokens": summary.tokens,
        "full_cache_bytes": summary.full_cache_bytes,
        "distance": summary.unit,
        "guessed": summary.guessed,
        "verdict": conclusion(summary),
        "variants": [_variant(line) for line in summary.lines],
    }


def _variant(line: Line) -> dict[str, Any]:
    variant, plan = line.placed.variant, line.placed.plan
    return {
        "name": variant.name,
        "policy": variant.policy.name,
        "parameters": asdict(variant.policy),
        "kv_dtype": line.placed.spec.slot_format.name,
        "is_reference": variant.is_reference,
        "budget": None if variant.budget is None else str(variant.budget),
        "budget_bytes": plan.budget_bytes,
        "reserved_bytes": plan.reserved_bytes,
        "slots": plan.slots,
        "T": plan.chunk,
        "count": line.count,
        "figures": {name: _estimate(estimate) for name, estimate in line.figures.items()},
        "by_distance": [
            {"over": part.over, "upto": part.upto, "count": part.count, **_estimate(part.estimate)}
            for part in line.parts
        ],
        "answers": [
            {"item": each.number, **asdict(outcome)}
            for each in line.results
            if isinstance(each, Answered)
            for outcome in each.outcomes
        ],
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else round(value, 6) for name, value in asdict(estimate).items()}
