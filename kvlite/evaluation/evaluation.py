"""Suites times variants on one model, measured in turn, with an estimate of the time that is left."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from kvlite.evaluation.journal import Journal
from kvlite.evaluation.results import Result
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.tasks import Task
from kvlite.evaluation.variant import REFERENCE, Placed, Variant

if TYPE_CHECKING:
    from kvlite.evaluation.tasks import Subject


@dataclass(frozen=True, slots=True)
class Measured:
    """The results of one variant in one suite, in the order of the conversations."""

    placed: Placed
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The results of a suite: the reference first, then the variants.

    `tokens` is the longest conversation under the full cache, and `full_cache_bytes` the size of an unbounded cache for
    it, to which shares refer.
    """

    suite: Suite
    tokens: int
    full_cache_bytes: int
    measured: tuple[Measured, ...]


@dataclass(slots=True)
class Pace:
    """The progress of an evaluation: units done of `total`, a unit being one conversation or text under one variant.

    `passes` are the forward passes still to come; `busy_s` the seconds that `timed` passes took, units from the journal
    left out. `is_sampled` once conversations were timed to their end, so that the seconds left mean something.
    """

    doing: str = ""
    total: int = 0
    done: float = 0.0
    passes: float = 0.0
    timed: float = 0.0
    busy_s: float = 0.0
    is_sampled: bool = False

    @property
    def left_s(self) -> float | None:
        """The seconds left, as long as passes take what they took so far; None before there are any."""
        return max(0.0, self.passes) * self.busy_s / self.timed if self.timed else None

    def expect(self, units: int, passes: float) -> None:
        """Add units to do, each of so many passes; fewer where `units` is negative."""
        self.total += units
        self.passes += units * passes

    def skip(self, units: float, passes: float) -> None:
        """Count units as done that took no time."""
        self.done += units
        self.passes -= units * passes

    def spend(self, seconds: float, units: float, passes: float) -> None:
        """Count units, or a part of one, that took so many seconds."""
        self.skip(units, passes)
        self.timed += units * passes
        self.busy_s += seconds


@dataclass(slots=True)
class Evaluation:
    """Measures `suites` under the full cache and `variants`; `results` are there when `run` is through.

    Where `one_by_one` is true, forced text is measured one token at a time besides each variant's own T. `file` is the
    user's own text for the forced suites.
    """

    subject: Subject
    suites: Sequence[Suite]
    variants: Sequence[Variant]
    journal: Journal
    file: str | None = None
    one_by_one: bool = True
    results: list[SuiteResult] = field(default_factory=list)

    def run(self) -> Iterator[Pace]:
        """Measure everything, yielding the progress in between.

        Raises CapacityError at once where a budget is too small, UsageError where a suite cannot be had.
        """
        tasks: dict[str, Task] = {}
        for suite in self.suites:
            if suite.material not in tasks:
                tasks[suite.material] = Task.of(self.subject, suite, self.file)
        pace = Pace()
        for task in tasks.values():
            _expect(pace, task, self._placed(task, task.tokens))
        found = {}
        for name, task in tasks.items():
            found[name] = yield from self._measure_suite(task, pace)
        self.results = [replace(found[suite.material], suite=suite) for suite in self.suites]

    def _placed(self, task: Task, tokens: int) -> list[Placed]:
        """The reference and the variants; forced text at every T that is asked for."""
        variants = list(self.variants)
        if task.suite.is_forced and self.one_by_one:
            variants = [each for given in variants for each in (given, replace(given, chunk_limit=1))]
        placed = [task.place(variant, tokens) for variant in (REFERENCE, *variants)]
        return list({str((each.key(), each.variant.budget)): each for each in placed}.values())

    def _measure_suite(self, task: Task, pace: Pace) -> Generator[Pace, None, SuiteResult]:
        """The reference, whose longest conversation the shares are of; then the variants."""
        reference, *expected = self._placed(task, task.tokens)
        measured = [(yield from self._measure(task, reference, pace))]
        tokens = max(result.tokens for result in measured[0].results)
        placed = self._placed(task, tokens)[1:]
        _expect(pace, task, expected, sign=-1)
        _expect(pace, task, placed)
        for each in placed:
            measured.append((yield from self._measure(task, each, pace)))
        full_cache_bytes = self.subject.loaded.shape.full_cache_bytes(tokens)
        return SuiteResult(task.suite, tokens, full_cache_bytes, tuple(measured))

    def _measure(self, task: Task, placed: Placed, pace: Pace) -> Generator[Pace, None, Measured]:
        """One variant; what the journal holds is not measured again."""
        pace.doing = f"{task.suite.name}, {placed.variant.name}, {placed.budget_text}"
        units = [task.unit(placed, number) for number in range(len(task.material))]
        missing = [number for number, unit in enumerate(units) if self.journal.find(unit) is None]
        passes = task.passes(placed)
        pace.skip(len(units) - len(missing), passes)
        yield replace(pace)
        rows = task.rows(placed, len(missing))
        measure = task.open(placed, rows) if missing else None
        for start in range(0, len(missing), rows):
            assert measure is not None
            numbers = missing[start : start + rows]
            results = yield from _timed(measure(numbers), len(numbers), passes, pace)
            pace.is_sampled = True
            for number, result in zip(numbers, results, strict=True):
                self.journal.keep(units[number], asdict(result))
        return Measured(placed, tuple(task.read(self.journal.find(unit)) for unit in units))


def _expect(pace: Pace, task: Task, placed: Sequence[Placed], sign: int = 1) -> None:
    for each in placed:
        pace.expect(sign * len(task.material), task.passes(each))


def _timed(
    measuring: Generator[float, None, Sequence[Result]], units: int, passes: float, pace: Pace
) -> Generator[Pace, None, Sequence[Result]]:
    """Measure a group of units, of so many passes each, and count the seconds they take."""
    shown, since = 0.0, time.monotonic()
    while True:
        try:
            share = next(measuring)
        except StopIteration as end:
            results: Sequence[Result] = end.value
            return results
        pace.spend(time.monotonic() - since, (share - shown) * units, passes)
        yield replace(pace)
        shown, since = share, time.monotonic()
