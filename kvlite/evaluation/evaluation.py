"""Suites times variants on one model, measured in turn, with an estimate of the time that is left."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvlite.evaluation.journal import Journal
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.tasks import REFERENCE, Result, Task
from kvlite.evaluation.variant import Placed, Variant

if TYPE_CHECKING:
    from kvlite.evaluation.tasks import Subject


@dataclass(frozen=True, slots=True)
class Pace:
    """The progress of an evaluation: units done and to do, a unit being one conversation or text under one variant.

    `left_s` follows from the seconds that forward passes took so far; None before there are any.
    """

    doing: str
    done: float
    total: int
    left_s: float | None
    is_sampled: bool
    """True once conversations were timed to their end, so that the seconds left mean something."""


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
class Clock:
    """Units done of `total`, and seconds per forward pass so far, units from the journal left out.

    `passes` are those still to come.
    """

    total: int = 0
    passes: float = 0.0
    done: float = 0.0
    timed: float = 0.0
    busy_s: float = 0.0
    is_sampled: bool = False

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

    def pace(self, doing: str) -> Pace:
        """The progress so far."""
        left = max(0.0, self.passes) * self.busy_s / self.timed if self.timed else None
        return Pace(doing, self.done, self.total, left, self.is_sampled)


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
        found: dict[str, SuiteResult] = {}
        for suite in self.suites:
            if suite.material not in tasks:
                tasks[suite.material] = Task.of(self.subject, suite, self.file)
        clock = Clock()
        for task in tasks.values():
            for placed in self._placed(task, task.tokens):
                clock.expect(len(task.material), task.passes(placed))
        for name, task in tasks.items():
            found[name] = yield from self._measure_suite(task, clock)
        self.results = [replace(found[suite.material], suite=suite) for suite in self.suites]

    def _placed(self, task: Task, tokens: int) -> list[Placed]:
        """The reference and the variants; forced text at every T that is asked for."""
        variants = list(self.variants)
        if task.suite.is_forced and self.one_by_one:
            variants = [each for given in variants for each in (given, replace(given, chunk_limit=1))]
        placed = [task.place(variant, tokens) for variant in (REFERENCE, *variants)]
        return list({str((each.key(), each.variant.budget)): each for each in placed}.values())

    def _measure_suite(self, task: Task, clock: Clock) -> Generator[Pace, None, SuiteResult]:
        """The reference, whose longest conversation the shares are of; then the variants."""
        reference, *expected = self._placed(task, task.tokens)
        measured = [Measured(reference, ())]
        yield from self._measure(task, reference, measured, clock)
        tokens = max(result.tokens for result in measured[0].results)
        placed = self._placed(task, tokens)[1:]
        for each in expected:
            clock.expect(-len(task.material), task.passes(each))
        for each in placed:
            clock.expect(len(task.material), task.passes(each))
        for each in placed:
            measured.append(Measured(each, ()))
            yield from self._measure(task, each, measured, clock)
        full_cache_bytes = self.subject.loaded.shape.full_cache_bytes(tokens)
        return SuiteResult(task.suite, tokens, full_cache_bytes, tuple(measured))

    def _measure(self, task: Task, placed: Placed, measured: list[Measured], clock: Clock) -> Iterator[Pace]:
        """One variant, whose results become the last of `measured`; what the journal holds is not measured again."""
        doing = f"{task.suite.name}, {placed.variant.name}, {placed.budget_text}"
        units = [task.unit(placed, number) for number in range(len(task.material))]
        found = [self.journal.find(unit) for unit in units]
        missing = [number for number, result in enumerate(found) if result is None]
        passes = task.passes(placed)
        clock.skip(len(units) - len(missing), passes)
        yield clock.pace(doing)
        rows = task.rows(placed, len(missing))
        measure = task.open(placed, rows) if missing else None
        for start in range(0, len(missing), rows):
            assert measure is not None
            numbers = missing[start : start + rows]
            results = yield from _timed(measure(numbers), len(numbers), passes, clock, doing)
            clock.is_sampled = True
            for number, result in zip(numbers, results, strict=True):
                found[number] = result.to_json()
                self.journal.keep(units[number], result.to_json())
        measured[-1] = Measured(placed, tuple(task.read(result) for result in found if result is not None))


def _timed(
    measuring: Generator[float, None, Sequence[Result]], units: int, passes: float, clock: Clock, doing: str
) -> Generator[Pace, None, Sequence[Result]]:
    """Measure a group of units under the clock."""
    shown, since = 0.0, time.monotonic()
    while True:
        try:
            share = next(measuring)
        except StopIteration as end:
            results: Sequence[Result] = end.value
            return results
        clock.spend(time.monotonic() - since, (share - shown) * units, passes)
        yield clock.pace(doing)
        shown, since = share, time.monotonic()
