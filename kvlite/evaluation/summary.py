"""Results as numbers with intervals of 95 %, per variant and by distance.

Wilson's intervals for a share of questions, a seeded bootstrap over conversations for everything else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvlite.evaluation.journal import Answered, QuestionResult, Result, Scored, Span
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.variant import Placed
from kvlite.memory.shape import ModelShape

RESAMPLES = 1000
Z95 = 1.959964

TURNS = (2, 4, 8, 16, 32)
"""Upper ends of the spans of distances, in turns; the last span is open."""


Item = TypeVar("Item")
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

    `count` is questions, or scored tokens. `samples` holds one pair (sum, count) per conversation or text of the main
    figure, for comparisons in pairs.
    """

    placed: Placed
    results: Sequence[Result]
    count: int
    figures: dict[str, Estimate]
    parts: tuple[Part, ...]
    samples: tuple[tuple[float, int], ...]

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
    if suite.is_forced:
        main = "kl" if suite.name == "kl" else "perplexity"
        lines = tuple(_scored_line(placed, results, main, suite.seed) for placed, results in measured)
    else:
        lines = tuple(_answered_line(placed, results, _questions(full)) for placed, results in measured)
    unreached = sum(each.unreached for each in full if isinstance(each, Answered))
    return Summary(suite, tokens, shape.full_cache_bytes(tokens), lines, unreached)


_Questions = dict[tuple[int, int], QuestionResult]  # by conversation and turn


def _questions(results: Sequence[Result]) -> _Questions:
    answered = (each for each in results if isinstance(each, Answered))
    return {(each.number, outcome.turn): outcome for each in answered for outcome in each.outcomes}


def _answered_line(placed: Placed, results: Sequence[Result], reference: _Questions) -> Line:
    found = _questions(results)
    right = {key: key in found and found[key].right for key in reference}

    def share(keys: Iterable[tuple[int, int]]) -> Estimate:
        answers = [right[key] for key in keys]
        return wilson(sum(answers), len(answers))

    parts = []
    for over, upto in zip((0, *TURNS), (*TURNS, None), strict=True):
        keys = [key for key, outcome in reference.items() if over < outcome.turns <= (upto or math.inf)]
        if keys:
            parts.append(Part(over, upto, len(keys), share(keys)))
    samples = []
    for result in results:
        said = [is_right for (number, _), is_right in right.items() if number == result.number]
        samples.append((float(sum(said)), len(said)))
    known = [key for key, outcome in reference.items() if outcome.right]
    figures = {"right": share(reference), "of_full": share(known)}
    return Line(placed, results, len(right), figures, tuple(parts), tuple(samples))


def _scored_line(placed: Placed, results: Sequence[Result], main: str, seed: int) -> Line:
    texts = [each.spans for each in results if isinstance(each, Scored)]

    def estimate(name: str, spans: Sequence[tuple[Span, ...]]) -> Estimate:
        return bootstrap(spans, lambda drawn: _FIGURES[name]([span for text in drawn for span in text]), seed)

    figures = {name: estimate(name, texts) for name in dict.fromkeys((main, *_FIGURES))}
    parts = []
    for over, upto in sorted({(span.over, span.upto) for spans in texts for span in spans}):
        within = [found for spans in texts if (found := tuple(span for span in spans if span.upto == upto))]
        count = sum(span.tokens for spans in within for span in spans)
        parts.append(Part(over, upto, count, estimate(main, within)))
    field = "kl" if main == "kl" else "nll"
    samples = tuple((sum(getattr(s, field) for s in text), sum(s.tokens for s in text)) for text in texts)
    return Line(placed, results, sum(count for _, count in samples), figures, tuple(parts), samples)


def _mean(field: str, spans: Sequence[Span]) -> float:
    tokens = sum(span.tokens for span in spans)
    return sum(getattr(span, field) for span in spans) / tokens if tokens else math.nan


_FIGURES: Mapping[str, Callable[[Sequence[Span]], float]] = {
    "kl": lambda spans: _mean("kl", spans),
    "agreement": lambda spans: _mean("agreed", spans),
    "perplexity": lambda spans: math.exp(_mean("nll", spans)),
}


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
