"""What a reader sees of a report: headlines, and tables of text. Used on the screen and in the page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.report import Report
from kvlite.evaluation.summary import Line, Summary
from kvlite.evaluation.verdict import verdict
from kvlite.memory.format import human_bytes

_TITLES = {"right": "RIGHT", "of_full": "OF FULL", "kl": "KL", "agreement": "SAME FIRST", "perplexity": "PERPLEXITY"}
_SHARES = ("right", "of_full", "agreement")


@dataclass(frozen=True, slots=True)
class Table:
    """A suite: its title, what it was made of, the columns and rows, and what follows.

    The first `fixed` columns say what a row is of.
    """

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    verdict: str = ""
    fixed: int = 2

    def blocks(self, width: int | None) -> list[Table]:
        """The table in pieces that fit `width` characters, each with the fixed columns; as it is where that is None.

        A piece has at least one of the other columns.
        """
        sizes = [max(map(len, column)) + 2 for column in zip(self.columns, *self.rows, strict=True)]
        room = math.inf if width is None else width + 2 - sum(sizes[: self.fixed])
        groups: list[list[int]] = [[]]
        for index in range(self.fixed, len(sizes)):
            if groups[-1] and sum(sizes[at] for at in groups[-1]) + sizes[index] > room:
                groups.append([])
            groups[-1].append(index)
        return [self._only([*range(self.fixed), *group]) for group in groups]

    def _only(self, indices: Sequence[int]) -> Table:
        columns, *rows = (tuple(row[index] for index in indices) for row in (self.columns, *self.rows))
        return replace(self, columns=columns, rows=tuple(rows))


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
    columns = ("POLICY", "BUDGET", "T", "SLOTS", *figures, *parts.values())
    rows = tuple(_row(line, tuple(parts)) for line in summary.lines)
    return Table(summary.result.suite.name, _about(summary), columns, rows, verdict(summary), fixed=3)


def kinds_table(summary: Summary) -> Table | None:
    """The main figure by kind of question; None where there are no kinds, as in text fed by force."""
    parts = summary.reference.kinds
    if not parts:
        return None
    columns = ("POLICY", "BUDGET", *(f"{part.kind} ({part.count})" for part in parts))
    rows = tuple(
        (line.placed.variant.name, line.placed.budget_text, *(_share(part.estimate, 0) for part in line.kinds))
        for line in summary.lines
    )
    return Table("Right by kind of question, and how many were asked", "", columns, rows)


def _about(summary: Summary) -> str:
    suite, result = summary.result.suite, summary.result
    counted = "scored tokens" if suite.is_forced else "questions"
    made_of = "texts" if suite.is_forced else "conversations"
    parts = [
        f"{len(result.measured[0].results)} {made_of} of up to {result.tokens:,} tokens",
        f"{summary.reference.count:,} {counted}",
        f"full cache {human_bytes(result.full_cache_bytes)}",
        "T: prompt tokens fed at once",
        "in brackets: intervals of 95 %",
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
        "any" if is_any else str(placed.plan.chunk),
        f"{placed.plan.slots:,}",
        *(_figure(name, estimate) for name, estimate in line.figures.items()),
        *(_value(main, by_upto[upto]) if upto in by_upto else "-" for upto in uptos),
    )


def _figure(name: str, estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    if name in _SHARES:
        return _share(estimate)
    return f"{_value(name, estimate.value)} [{_value(name, estimate.low)}-{_value(name, estimate.high)}]"


def _share(estimate: Estimate, decimals: int = 1) -> str:
    return f"{estimate.value:.{decimals}%} [{estimate.low * 100:.0f}-{estimate.high * 100:.0f}]"


def _value(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{value:.0%}"
    return f"{value:.4f}" if name == "kl" else f"{value:.2f}"
