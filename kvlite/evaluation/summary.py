"""Results as numbers with intervals: per variant and by distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvlite.evaluation.intervals import Estimate, bootstrap, wilson
from kvlite.evaluation.results import Answered, QuestionResult, Result, Scored, Span
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.variant import Placed
from kvlite.memory.shape import ModelShape

TURNS = (2, 4, 8, 16, 32)
"""Upper ends of the spans of distances, in turns; the last span is open."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The results of one variant in one suite, in the order of the conversations."""

    placed: Placed
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The main figure over distances above `over` and up to `upto` (None: without end)."""

    label: str
    count: int
    estimate: Estimate
    over: int
    upto: int | None


@dataclass(frozen=True, slots=True)
class Line:
    """The results of one variant in one suite: its figures by name, and the first of them by distance.

    `count` is questions, or scored tokens. `samples` holds one pair (sum, count) per conversation or text of the main
    figure, for comparisons in pairs.
    """

    placed: Placed
    results: tuple[Result, ...]
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
    def distances(self) -> list[str]:
        """The spans of distances of all lines."""
        return list(dict.fromkeys(part.label for line in self.lines for part in line.parts))

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
    full = measured[0]
    tokens = max(result.tokens for result in full.results)
    if suite.is_forced:
        lines = tuple(_scored_line(each, "kl" if suite.name == "kl" else "perplexity", suite.seed) for each in measured)
    else:
        reference = _questions(full)
        lines = tuple(_answered_line(each, reference) for each in measured)
    unreached = sum(each.unreached for each in full.results if isinstance(each, Answered))
    return Summary(suite, tokens, shape.full_cache_bytes(tokens), lines, unreached)


_Key = tuple[int, int]  # conversation and turn


def _questions(measured: Measured) -> dict[_Key, QuestionResult]:
    answered = (each for each in measured.results if isinstance(each, Answered))
    return {(each.number, outcome.turn): outcome for each in answered for outcome in each.outcomes}


def _answered_line(measured: Measured, reference: Mapping[_Key, QuestionResult]) -> Line:
    found = _questions(measured)
    right = {key: key in found and found[key].right for key in reference}

    def share(keys: Iterable[_Key]) -> Estimate:
        answers = [right[key] for key in keys]
        return wilson(sum(answers), len(answers))

    parts = []
    for over, upto in zip((0, *TURNS), (*TURNS, None), strict=True):
        keys = [key for key, outcome in reference.items() if over < outcome.turns <= (upto or math.inf)]
        if keys:
            parts.append(Part(_label(over, upto), len(keys), share(keys), over, upto))
    samples = []
    for result in measured.results:
        said = [is_right for (number, _), is_right in right.items() if number == result.number]
        samples.append((float(sum(said)), len(said)))
    known = [key for key, outcome in reference.items() if outcome.right]
    figures = {"right": share(reference), "of_full": share(known)}
    return Line(measured.placed, measured.results, len(right), figures, tuple(parts), tuple(samples))


def _label(over: int, upto: int | None) -> str:
    if upto is None:
        return f"> {over}"
    return str(upto) if upto == over + 1 else f"{over + 1}-{upto}"


def _scored_line(measured: Measured, main: str, seed: int) -> Line:
    texts = [each.spans for each in measured.results if isinstance(each, Scored)]

    def estimate(name: str, spans: Sequence[tuple[Span, ...]]) -> Estimate:
        return bootstrap(spans, lambda drawn: _FIGURES[name]([span for text in drawn for span in text]), seed)

    figures = {name: estimate(name, texts) for name in dict.fromkeys((main, *_FIGURES))}
    parts = []
    for over, upto in sorted({(span.over, span.upto) for spans in texts for span in spans}):
        within = [tuple(span for span in spans if span.upto == upto) for spans in texts]
        within = [spans for spans in within if spans]
        count = sum(span.tokens for spans in within for span in spans)
        parts.append(Part(_label(over, upto), count, estimate(main, within), over, upto))
    field = "kl" if main == "kl" else "nll"
    samples = tuple((sum(getattr(s, field) for s in text), sum(s.tokens for s in text)) for text in texts)
    return Line(measured.placed, measured.results, sum(count for _, count in samples), figures, tuple(parts), samples)


def _mean(field: str, spans: Sequence[Span]) -> float:
    tokens = sum(span.tokens for span in spans)
    return sum(getattr(span, field) for span in spans) / tokens if tokens else math.nan


_FIGURES: Mapping[str, Callable[[Sequence[Span]], float]] = {
    "kl": lambda spans: _mean("kl", spans),
    "agreement": lambda spans: _mean("agreed", spans),
    "perplexity": lambda spans: math.exp(_mean("nll", spans)),
}
