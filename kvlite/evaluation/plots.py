"""The plots of a suite: its main figure by budget, and by distance under each budget.

Intervals stand beside each other where several variants share a place on the x axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.summary import Line, Summary
from kvlite.record.page import WIDTH, Curve, Mark, Plot, round_ticks, y_at

_APART = 7.0  # the most between the intervals of two variants
_FIGURES = {"right": "right answers", "kl": "nats from the full cache", "perplexity": "perplexity"}


Points = Sequence[tuple[str, Mapping[str, Estimate]]]
"""Curves: a variant's name and its values by the label of their place on the x axis."""


def suite_plots(summary: Summary) -> list[Plot]:
    """By budget where there are several; then by distance, one plot per budget and way in which text was fed."""
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
        is_single = summary.suite.is_forced and line.placed.plan.chunk == 1
        groups.setdefault(line.placed.budget_text + (", T = 1" if is_single else ""), []).append(line)
    for title, others in (groups or {"everything": []}).items():
        lines_of_plot = [summary.reference, *others]
        points = [
            (each.placed.variant.name, {part.label: part.estimate for part in each.parts}) for each in lines_of_plot
        ]
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
            Mark(round(places[label] + aside, 1), y_at(each.value, ends), y_at(each.low, ends), y_at(each.high, ends))
            for label, each in found.items()
            if not math.isnan(each.value)
        )
        curves.append(Curve(name, names.index(name), marks))
    x_ticks = tuple((at, label) for label, at in places.items())
    y_ticks = tuple((y_at(value, ends), f"{value:g}" if summary.suite.is_forced else f"{value:.0%}") for value in ends)
    title, x_title = titles
    return Plot(title, x_title, _FIGURES[summary.main], x_ticks, y_ticks, tuple(curves))


def _axis(summary: Summary) -> list[float]:
    """The ticks of the y axis, the same in all plots of a suite: round numbers, with every interval between them."""
    if not summary.suite.is_forced:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    estimates = [line.main for line in summary.lines] + [part.estimate for line in summary.lines for part in line.parts]
    ends = [end for each in estimates for end in (each.low, each.high, each.value) if math.isfinite(end)]
    lowest = min(ends, default=0.0) if summary.main == "perplexity" else 0.0
    return round_ticks(lowest, max(ends, default=1.0))
