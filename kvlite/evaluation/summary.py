"""Results as numbers with intervals of 95 %, per variant and by distance.

Wilson's intervals for a share of questions, a seeded bootstrap over conversations for everything else.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvlite.evaluation.journal import Answered, QuestionResult, Result, Scored
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.variant import Placed
from kvlite.memory.shape import ModelShape

RESAMPLES = 1000
Z95 = 1.959964

TURNS = (2, 4, 8, 16, 32)
"""Upper ends of the spans of distances, in turns; the last span is open."""

_MAIN = {"kl": "kl", "ppl": "perplexity"}  # of the suites whose main figure is not the right answers
_FORCED_FIGURES = ("kl", "agreement", "perplexity")

Item = TypeVar("Item")
Pair = tuple[float, int]
"""A sum over the questions or tokens of one conversation, and their count."""

Distances = tuple[int, int | None]
"""Distances above the first number and up to the second, None: without end."""

Measured = tuple[Placed, Sequence[Result]]
"""A variant in one suite and its results, in the order of the conversations."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval that holds the true one in 95 of 100 such measurements."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Part:
    """The main figure over distances above `over` and up to `upto` (None: without end)."""

    over: int
    upto: int | None
    count: int
    estimate: Estimate

    @property
    def label(self) -> str:
        if self.upto is None:
            return f"> {self.over}"
        return str(self.upto) if self.upto == self.over + 1 else f"{self.over + 1}-{self.upto}"


@dataclass(frozen=True, slots=True)
class Line:
    """The results of one variant in one suite: its figures by name, and the first of them by distance.

    `count` is questions, or scored tokens. `samples` is the main figure of each conversation, for comparisons in pairs.
    """

    placed: Placed
    results: Sequence[Result]
    count: int
    figures: dict[str, Estimate]
    parts: tuple[Part, ...]
    samples: tuple[Pair, ...]

    @property
    def main(self) -> Estimate:
        """The figure that variants are compared by."""
        return next(iter(self.figures.values()))


@dataclass(frozen=True, slots=True)
class Summary:
    """A suite in numbers: the reference first.

    `tokens` is the longest conversation under the full cache, and `full_cache_bytes` the size of an unbounded cache for
    it, to which shares refer. `unreached` questions lie behind the model's window under the full cache and count for no
    variant; one that only a variant did not reach is wrong.
    """

    suite: Suite
    tokens: int
    full_cache_bytes: int
    lines: tuple[Line, ...]
    unreached: int = 0

    @property
    def reference(self) -> Line:
        return self.lines[0]

    @property
    def main(self) -> str:
        """The name of the figure that variants are compared by."""
        return next(iter(self.reference.figures))

    @property
    def unit(self) -> str:
        """The unit of distances."""
        return "tokens before" if self.suite.is_forced else "turns back"

    @property
    def by_budget(self) -> dict[str, dict[str, Line]]:
        """The lines to compare, by budget from the smallest, and by name; of several T the smallest, as in decoding."""
        by_size = sorted(self.lines[1:], key=lambda line: line.placed.plan.budget_bytes)
        budgets: dict[str, dict[str, Line]] = {str(line.placed.variant.budget): {} for line in by_size}
        for line in sorted(self.lines[1:], key=lambda line: -line.placed.plan.chunk):
            budgets[str(line.placed.variant.budget)][line.placed.variant.name] = line
        return budgets


def summarise(suite: Suite, shape: ModelShape, measured: Sequence[Measured]) -> Summary:
    """The numbers of a suite on a model of `shape`, the reference measured first."""
    full = measured[0][1]
    tokens = max(result.tokens for result in full)
    lines = tuple(_line(suite, placed, results, full) for placed, results in measured)
    unreached = sum(each.unreached for each in full if isinstance(each, Answered))
    return Summary(suite, tokens, shape.full_cache_bytes(tokens), lines, unreached)


def _line(suite: Suite, placed: Placed, results: Sequence[Result], full: Sequence[Result]) -> Line:
    sums = [_sums(result, reference) for result, reference in zip(results, full, strict=True)]
    main = _MAIN.get(suite.name, "right")

    def pairs(name: str, at: Distances | None = None) -> list[Pair]:
        """A figure of each conversation, at one distance or at all."""
        found = [each.values() if at is None else [each[at]] for each in sums if at is None or at in each]
        return [(sum(by[name][0] for by in each), sum(by[name][1] for by in each)) for each in found]

    names = dict.fromkeys((main, *_FORCED_FIGURES)) if suite.is_forced else ("right", "of_full")
    figures = {name: _estimate(name, pairs(name), suite.seed) for name in names}
    parts = []
    for at in sorted({at for each in sums for at in each}, key=lambda at: at[0]):
        there = pairs(main, at)
        parts.append(Part(*at, sum(count for _, count in there), _estimate(main, there, suite.seed)))
    samples = tuple(pairs(main))
    return Line(placed, results, sum(count for _, count in samples), figures, tuple(parts), samples)


def _sums(result: Result, reference: Result) -> dict[Distances, dict[str, Pair]]:
    """The figures of one conversation or text by distance; questions are those that the reference reached."""
    if isinstance(result, Scored):
        return {
            (span.over, span.upto): {
                "kl": (span.kl, span.tokens),
                "agreement": (span.agreed, span.tokens),
                "perplexity": (span.nll, span.tokens),
            }
            for span in result.spans
        }
    assert isinstance(reference, Answered)
    right = {outcome.turn for outcome in result.outcomes if outcome.right}
    by_distance: dict[Distances, list[QuestionResult]] = {}
    for question in reference.outcomes:
        index = bisect_left(TURNS, question.turns)
        by_distance.setdefault(((0, *TURNS)[index], (*TURNS, None)[index]), []).append(question)
    return {
        at: {
            "right": (sum(asked.turn in right for asked in questions), len(questions)),
            "of_full": (
                sum(asked.turn in right for asked in questions if asked.right),
                sum(asked.right for asked in questions),
            ),
        }
        for at, questions in by_distance.items()
    }


def _estimate(name: str, pairs: Sequence[Pair], seed: int) -> Estimate:
    if name not in _FORCED_FIGURES:
        return wilson(int(sum(right for right, _ in pairs)), sum(asked for _, asked in pairs))
    if name == "perplexity":
        return bootstrap(pairs, lambda drawn: math.exp(mean(drawn)), seed)
    return bootstrap(pairs, mean, seed)


def mean(pairs: Sequence[Pair]) -> float:
    """The sums of `pairs` by their counts; NaN where nothing was counted."""
    counted = sum(count for _, count in pairs)
    return sum(total for total, _ in pairs) / counted if counted else math.nan


def wilson(right: int, asked: int) -> Estimate:
    """The share of right answers (Wilson 1927, the score interval), which takes the questions as independent."""
    if not asked:
        return Estimate(math.nan, math.nan, math.nan)
    share, square = right / asked, Z95**2
    middle = (share + square / (2 * asked)) / (1 + square / asked)
    half = Z95 / (1 + square / asked) * math.sqrt(share * (1 - share) / asked + square / (4 * asked**2))
    low, high = min(share, middle - half), max(share, middle + half)
    return Estimate(share, max(0.0, low), min(1.0, high))  # rounding at the ends


def bootstrap(items: Sequence[Item], statistic: Callable[[Sequence[Item]], float], seed: int = 0) -> Estimate:
    """A statistic of conversations or texts, which are drawn again with replacement (Efron 1979, percentiles).

    What one conversation holds stays together, so that questions in one need not be independent.
    """
    value = statistic(items) if items else math.nan
    rng = random.Random(seed)
    drawn = (statistic(rng.choices(items, k=len(items))) for _ in range(RESAMPLES if items else 0))
    found = sorted(draw for draw in drawn if not math.isnan(draw))
    if not found:
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, found[int(0.025 * len(found))], found[min(len(found) - 1, int(0.975 * len(found)))])
