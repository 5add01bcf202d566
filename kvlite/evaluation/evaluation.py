"""Suites times variants on one model, measured in turn, with an estimate of the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from kvlite.evaluation.journal import Journal
from kvlite.evaluation.results import Result
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.summary import Measured, Summary, summarise
from kvlite.evaluation.tasks import Task
from kvlite.evaluation.variant import REFERENCE, Placed, Variant

if TYPE_CHECKING:
    from kvlite.evaluation.tasks import Subject

_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


@dataclass(frozen=True, slots=True)
class Pace:
    """`done` of `total` conversations or texts, each counted once under every variant.

    `left_s` are the seconds left, as long as one takes what they took so far; None before any was measured.
    """

    doing: str
    done: float
    total: int
    left_s: float | None


@dataclass(slots=True)
class Evaluation:
    """Measures `suites` under the full cache and `variants`, and tells `tell` how far it is.

    Where `one_by_one` is true, forced text is measured one token at a time besides each variant's own T. `file` is the
    user's own text for the forced suites.
    """

    subject: Subject
    suites: Sequence[Suite]
    variants: Sequence[Variant]
    journal: Journal
    file: str | None = None
    one_by_one: bool = True
    tell: Callable[[Pace], None] = lambda pace: None
    _total: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)
    _kept: int = field(default=0, init=False)  # of those done, in the journal before
    _since_s: float = field(default=0.0, init=False)

    def run(self) -> list[Summary]:
        """Measure everything.

        Raises CapacityError at once where a budget is too small, UsageError where a suite cannot be had.
        """
        tasks: dict[str, Task] = {}
        for suite in self.suites:
            if suite.material not in tasks:
                tasks[suite.material] = Task.of(self.subject, suite, self.file)
        self._total = sum(len(task.material) * len(self._placed(task, task.tokens)) for task in tasks.values())
        self._since_s = time.monotonic()
        found = {name: self._measure_all(task) for name, task in tasks.items()}
        shape = self.subject.loaded.shape
        return [summarise(suite, shape, found[suite.material]) for suite in self.suites]

    def _placed(self, task: Task, tokens: int) -> list[Placed]:
        """The reference and the variants; forced text at every T that is asked for."""
        variants = list(self.variants)
        if task.suite.is_forced and self.one_by_one:
            variants = [each for given in variants for each in (given, replace(given, chunk_limit=1))]
        placed = [task.place(variant, tokens) for variant in (REFERENCE, *variants)]
        return list({str((each.key(), each.variant.budget)): each for each in placed}.values())

    def _measure_all(self, task: Task) -> list[Measured]:
        """The reference, whose longest conversation the shares are of; then the variants."""
        reference, *expected = self._placed(task, task.tokens)
        full = self._measure(task, reference)
        placed = self._placed(task, max(result.tokens for result in full.results))[1:]
        self._total += len(task.material) * (len(placed) - len(expected))
        return [full, *(self._measure(task, each) for each in placed)]

    def _measure(self, task: Task, placed: Placed) -> Measured:
        """One variant; what the journal holds is not measured again."""
        doing = f"{task.suite.name}, {placed.variant.name}, {placed.budget_text}"
        units = [task.unit(placed, number) for number in range(len(task.material))]
        missing = [number for number, unit in enumerate(units) if self.journal.find(unit) is None]
        self._kept += len(units) - len(missing)
        self._done += len(units) - len(missing)
        self._tell(doing, self._done)
        rows = task.rows(placed, len(missing))
        measure = task.open(placed, rows) if missing else None
        for start in range(0, len(missing), rows):
            assert measure is not None
            numbers = missing[start : start + rows]
            results = measure(numbers, lambda done: self._tell(doing, self._done + done))
            for number, result in zip(numbers, results, strict=True):
                self.journal.keep(units[number], asdict(result))
            self._done += len(numbers)
        return Measured(placed, tuple(_RESULT.validate_python(self.journal.find(unit)) for unit in units))

    def _tell(self, doing: str, done: float) -> None:
        measured, took_s = done - self._kept, time.monotonic() - self._since_s
        left_s = took_s / measured * (self._total - done) if measured else None
        self.tell(Pace(doing, done, self._total, left_s))
