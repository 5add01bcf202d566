"""The plots of a suite: its main figure by budget, and by distance under each budget.

Intervals stand beside each other where several variants share a place on the x axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.summary import Line, Summary
from kvlite.memory.format import human_bytes
from kvlite.record.page import WIDTH, Curve, Mark, Plot, round_ticks, y_at

_APART = 7.0  # the most between the intervals of two variants
_FIGURES = {"right": "right answers", "kl": "nats from the full cache", "perplexity": "perplexity"}


def suite_plots(summary: Summary) -> tuple[Plot, ...]:
    """By budget where there are several; then by distance, one plot per budget and way in which text was fed."""
    return (*_by_budget(summary), *_by_distance(summary))


Points = Sequence[tuple[str, Mapping[str, Estimate]]]
"""One curve: the variant's name and its values by the label of their place on the x axis."""


def _by_budget(summary: Summary) -> Iterator[Plot]:
    """Text scored at several T counts at the smallest, as when decoding."""
    compared = sorted(
        (line for lines in summary.by_budget.values() for line in lines.values()),
        key=lambda line: line.placed.plan.budget_bytes,
    )
    sizes = list(dict.fromkeys(map(_size, compared)))
    if len(sizes) > 1:
        found: dict[str, dict[str, Estimate]] = {}
        for line in compared:
            found.setdefault(line.placed.variant.name, {})[_size(line)] = line.main
        reference = (summary.reference.placed.variant.name, dict.fromkeys(sizes, summary.reference.main))
        yield _plot(summary, ("By budget", "budget"), sizes, [reference, *found.items()])


def _size(line: Line) -> str:
    budget = line.placed.variant.budget
    shown = "" if budget is None else str(budget)
    return shown if shown.endswith(("%", "tok")) else human_bytes(line.placed.plan.budget_bytes)


def _by_distance(summary: Summary) -> Iterator[Plot]:
    groups: dict[str, list[Line]] = {}
    for line in summary.lines[1:]:
        is_single = summary.result.suite.is_forced and line.placed.plan.chunk == 1
        groups.setdefault(line.placed.budget_text + (", T = 1" if is_single else ""), []).append(line)
    for title, lines in (groups or {"everything": []}).items():
        lines = [summary.reference, *lines]
        labels = list(dict.fromkeys(part.label for line in lines for part in line.parts))
        points = [(line.placed.variant.name, {part.label: part.estimate for part in line.parts}) for line in lines]
        yield _plot(summary, (title, summary.unit), labels, points)


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
    y_ticks = tuple((y_at(value, ends), _label(summary, value)) for value in ends)
    title, x_title = titles
    return Plot(title, x_title, _FIGURES[next(iter(summary.reference.figures))], x_ticks, y_ticks, tuple(curves))


def _axis(summary: Summary) -> list[float]:
    """The ticks of the y axis, the same in all plots of a suite: round numbers, with every interval between them."""
    if summary.higher_is_better:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    estimates = [line.main for line in summary.lines] + [part.estimate for line in summary.lines for part in line.parts]
    ends = [end for each in estimates for end in (each.low, each.high, each.value) if math.isfinite(end)]
    lowest = min(ends, default=0.0) if next(iter(summary.reference.figures)) == "perplexity" else 0.0
    return round_ticks(lowest, max(ends, default=1.0))


def _label(summary: Summary, value: float) -> str:
    return f"{value:.0%}" if summary.higher_is_better else f"{value:g}"
