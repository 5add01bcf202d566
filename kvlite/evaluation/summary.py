"""Results as numbers with intervals: per variant, by distance, and by kind of question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvlite.evaluation.evaluation import Measured, SuiteResult
from kvlite.evaluation.intervals import Estimate, bootstrap, wilson
from kvlite.evaluation.results import Answered, QuestionResult, Scored, Span
from kvlite.evaluation.variant import Placed

TURNS = (2, 4, 8, 16, 32)
"""Upper ends of the spans of distances, in turns; the last span is open."""


@dataclass(frozen=True, slots=True)
class Part:
    """A figure over a span of distances: above `over` and up to `upto` (None: without end)."""

    over: int
    upto: int | None
    count: int
    estimate: Estimate

    @property
    def label(self) -> str:
        """The span for reading."""
        if self.upto is None:
            return f"> {self.over}"
        return str(self.upto) if self.upto == self.over + 1 else f"{self.over + 1}-{self.upto}"


@dataclass(frozen=True, slots=True)
class KindPart:
    """A figure over the questions of one kind."""

    kind: str
    count: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Line:
    """The results of one variant in one suite: its figures by name, and the first of them by distance and by kind.

    Forced text has no kinds. `count` is questions, or scored tokens. `samples` holds one pair
    (sum, count) per conversation or text of the main figure, for comparisons in pairs.
    """

    placed: Placed
    count: int
    figures: dict[str, Estimate]
    parts: tuple[Part, ...]
    kinds: tuple[KindPart, ...]
    samples: tuple[tuple[float, int], ...]

    @property
    def main(self) -> Estimate:
        """The figure that variants are compared by."""
        return next(iter(self.figures.values()))


@dataclass(frozen=True, slots=True)
class Summary:
    """A suite in numbers: the reference first.

    `unit` is the unit of distances. `unreached` questions lie behind the model's window under the full cache and count
    for no variant; one that only a variant did not reach is wrong.
    """

    result: SuiteResult
    lines: tuple[Line, ...]
    unit: str
    unreached: int = 0

    @property
    def reference(self) -> Line:
        return self.lines[0]

    @property
    def higher_is_better(self) -> bool:
        return not self.result.suite.is_forced


def summarise(result: SuiteResult) -> Summary:
    """The numbers of a suite."""
    seed = result.suite.seed
    if result.suite.is_forced:
        main = _kl if result.suite.name == "kl" else _perplexity
        return Summary(result, tuple(_scored_line(each, main, seed) for each in result.measured), "tokens before")
    reference = _questions(result.measured[0])
    unreached = sum(each.unreached for each in result.measured[0].results if isinstance(each, Answered))
    lines = tuple(_answered_line(each, reference) for each in result.measured)
    return Summary(result, lines, "turns back", unreached)


_Key = tuple[int, int]  # conversation and turn


def _questions(measured: Measured) -> dict[_Key, QuestionResult]:
    answered = (each for each in measured.results if isinstance(each, Answered))
    return {(each.number, outcome.turn): outcome for each in answered for outcome in each.outcomes}


def _answered_line(measured: Measured, reference: dict[_Key, QuestionResult]) -> Line:
    found = _questions(measured)
    right = {key: key in found and found[key].right for key in reference}

    def share(keys: Sequence[_Key]) -> Estimate:
        return wilson(sum(right[key] for key in keys), len(keys))

    parts = []
    for over, upto in zip((0, *TURNS), (*TURNS, None), strict=True):
        keys = [key for key, outcome in reference.items() if over < outcome.turns <= (upto or math.inf)]
        if keys:
            parts.append(Part(over, upto, len(keys), share(keys)))
    kinds = []
    for kind in sorted({outcome.kind for outcome in reference.values()}):
        keys = [key for key, outcome in reference.items() if outcome.kind == kind]
        kinds.append(KindPart(kind, len(keys), share(keys)))
    numbers = [each.number for each in measured.results]
    samples = [
        (float(sum(right[key] for key in reference if key[0] == number)), sum(key[0] == number for key in reference))
        for number in numbers
    ]
    known = [key for key, outcome in reference.items() if outcome.right]
    figures = {"right": share(list(reference)), "of_full": share(known)}
    return Line(measured.placed, len(right), figures, tuple(parts), tuple(kinds), tuple(samples))


_Figure = Callable[[Sequence[Span]], float]


def _scored_line(measured: Measured, main: _Figure, seed: int) -> Line:
    texts = [each.spans for each in measured.results if isinstance(each, Scored)]

    def estimate(figure: _Figure, spans: Sequence[tuple[Span, ...]]) -> Estimate:
        return bootstrap(spans, lambda drawn: figure([span for text in drawn for span in text]), seed)

    names: dict[_Figure, str] = {_kl: "kl", _perplexity: "perplexity", _agreement: "agreement"}
    ordered = (main, *(figure for figure in (_kl, _agreement, _perplexity) if figure is not main))
    figures = {names[figure]: estimate(figure, texts) for figure in ordered}
    parts = []
    for over, upto in sorted({(span.over, span.upto) for spans in texts for span in spans}):
        within = [tuple(span for span in spans if span.upto == upto) for spans in texts]
        within = [spans for spans in within if spans]
        count = sum(span.tokens for spans in within for span in spans)
        parts.append(Part(over, upto, count, estimate(main, within)))
    field = "kl" if main is _kl else "nll"
    samples = tuple((sum(getattr(s, field) for s in text), sum(s.tokens for s in text)) for text in texts)
    return Line(measured.placed, sum(count for _, count in samples), figures, tuple(parts), (), samples)


def _mean(spans: Sequence[Span], total: float) -> float:
    tokens = sum(span.tokens for span in spans)
    return total / tokens if tokens else math.nan


def _kl(spans: Sequence[Span]) -> float:
    return _mean(spans, sum(span.kl for span in spans))


def _agreement(spans: Sequence[Span]) -> float:
    return _mean(spans, sum(span.agreed for span in spans))


def _perplexity(spans: Sequence[Span]) -> float:
    return math.exp(_mean(spans, sum(span.nll for span in spans)))
