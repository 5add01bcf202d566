"""Results as numbers with intervals of 95 %, per variant and by distance.

Wilson's intervals for a share of questions, a seeded bootstrap over items or texts for everything else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvlite.evaluation.journal import Answered, QuestionResult, Result, Scored, span_of
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.variant import Placed

RESAMPLES = 1000
Z95 = 1.959964

LEAST_DRAWN = 4
"""Items or texts below which drawing them again says nothing of chance."""

LEAST_RIGHT = 0.5
"""Below this share of right answers under the full cache a suite says more about the model than about the cache."""

_FORCED_FIGURES = ("kl", "agreement", "perplexity")
_SHARES = ("of_full", "right", "free", "free_of_full")

Item = TypeVar("Item")
Pair = tuple[float, int]
"""A sum over the questions or tokens of one item, and their count."""

Distances = tuple[int, int]
"""Distances in tokens, above the first number and up to the second."""

Measured = tuple[Placed, Sequence[Result]]
"""A variant in one suite and its results, in the order of the items."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval that holds the true one in 95 of 100 such measurements."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Part:
    """Right answers, or the main figure of forced text, over distances above `over` and up to `upto`."""

    over: int
    upto: int
    count: int
    estimate: Estimate

    @property
    def label(self) -> str:
        return f"{self.over + 1}-{self.upto}"


@dataclass(frozen=True, slots=True)
class Line:
    """The results of one variant in one suite: its figures by name, and by distance.

    `count` is questions, or scored tokens. `samples` is the main figure of each item, for comparisons in pairs.
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

    `tokens` is the longest item, and `full_cache_bytes` the size of an unbounded cache for it, to which shares refer.
    `guessed` questions are answered right without having read the item; they count for no variant.
    """

    suite: Suite
    tokens: int
    full_cache_bytes: int
    lines: tuple[Line, ...]
    guessed: int = 0

    @property
    def reference(self) -> Line:
        return self.lines[0]

    @property
    def reference_name(self) -> str:
        """The words for what variants are compared with."""
        placed = self.reference.placed
        return f"the last {placed.plan.slots:,} tokens" if placed.variant.policy.evicts else "the full cache"

    @property
    def is_up_to_it(self) -> bool:
        """True where the model, with the full cache, answers enough that a budget can be judged by what it loses."""
        return can_do(self.reference.results)

    @property
    def main(self) -> str:
        """The name of the figure that variants are compared by."""
        return next(iter(self.reference.figures))

    @property
    def unit(self) -> str:
        """The unit of distances."""
        return "tokens before" if self.suite.is_forced else "tokens back"

    @property
    def by_budget(self) -> dict[str, dict[str, Line]]:
        """The lines to compare, by budget from the smallest, and by name."""
        budgets: dict[str, dict[str, Line]] = {}
        for line in sorted(self.lines[1:], key=lambda line: line.placed.plan.budget_bytes):
            budgets.setdefault(str(line.placed.variant.budget), {})[line.placed.variant.name] = line
        return budgets


def can_do(full: Sequence[Result]) -> bool:
    """True for forced text, and where the full cache answers enough questions that cannot be guessed."""
    asked = [outcome for each in full if isinstance(each, Answered) for outcome in each.outcomes if not outcome.guessed]
    if not asked:
        return not any(isinstance(each, Answered) for each in full)
    return sum(outcome.right for outcome in asked) >= LEAST_RIGHT * len(asked)


def summarise(suite: Suite, full_cache_bytes: int, measured: Sequence[Measured]) -> Summary:
    """The numbers of a suite, the reference measured first."""
    full = measured[0][1]
    tokens = max(result.tokens for result in full)
    lines = tuple(_line(suite, placed, results, measured[0]) for placed, results in measured)
    guessed = sum(outcome.guessed for each in full if isinstance(each, Answered) for outcome in each.outcomes)
    return Summary(suite, tokens, full_cache_bytes, lines, guessed)


def _line(suite: Suite, placed: Placed, results: Sequence[Result], full: Measured) -> Line:
    is_past = full[0].variant.policy.evicts  # then no whole cache was there to diverge from
    sums = [_sums(result, reference) for result, reference in zip(results, full[1], strict=True)]
    main = {"kl": "kl", "ppl": "perplexity"}.get(suite.name, "of_full")

    def pairs(name: str, at: Distances | None = None) -> list[Pair]:
        """A figure of each item, at one distance or at all."""
        found = [each.values() if at is None else [each[at]] for each in sums if at is None or at in each]
        return [(sum(by[name][0] for by in each), sum(by[name][1] for by in each)) for each in found]

    questions = (*_SHARES[:2], "nll", *(_SHARES[2:] if suite.free else ()))
    names = dict.fromkeys((main, *(() if is_past else _FORCED_FIGURES))) if suite.is_forced else questions
    figures = {name: _estimate(name, pairs(name), suite.seed) for name in names}
    by_distance = main if suite.is_forced else "right"
    parts = []
    for at in sorted({at for each in sums for at in each}):
        there = pairs(by_distance, at)
        parts.append(Part(*at, sum(count for _, count in there), _estimate(by_distance, there, suite.seed)))
    count = sum(count for _, count in pairs(by_distance))
    return Line(placed, results, count, figures, tuple(parts), tuple(pairs(main)))


def _sums(result: Result, reference: Result) -> dict[Distances, dict[str, Pair]]:
    """The figures of one item or text by distance; questions are those that cannot be guessed."""
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
    by_distance: dict[Distances, list[tuple[QuestionResult, QuestionResult]]] = {}
    for found, full in zip(result.outcomes, reference.outcomes, strict=True):
        if not full.guessed:
            by_distance.setdefault(span_of(full.back), []).append((found, full))
    return {
        at: {
            "of_full": (sum(found.right for found, full in asked if full.right), sum(full.right for _, full in asked)),
            "right": (sum(found.right for found, _ in asked), len(asked)),
            "nll": (sum(found.nll for found, _ in asked), len(asked)),
            "free": (sum(bool(found.free) for found, _ in asked), len(asked)),
            "free_of_full": (
                sum(bool(found.free) for found, full in asked if full.free),
                sum(bool(full.free) for _, full in asked),
            ),
        }
        for at, asked in by_distance.items()
    }


def _estimate(name: str, pairs: Sequence[Pair], seed: int) -> Estimate:
    if name in _SHARES:
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
    """A statistic of items or texts, which are drawn again with replacement (Efron 1979, percentiles).

    What one item holds stays together, so that questions in one need not be independent. Fewer than LEAST_DRAWN give no
    interval.
    """
    value = statistic(items) if items else math.nan
    if len(items) < LEAST_DRAWN:
        return Estimate(value, math.nan, math.nan)
    rng = random.Random(seed)
    drawn = (statistic(rng.choices(items, k=len(items))) for _ in range(RESAMPLES))
    found = sorted(draw for draw in drawn if not math.isnan(draw))
    if not found:
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, found[int(0.025 * len(found))], found[min(len(found) - 1, int(0.975 * len(found)))])
