"""Decoding one step ahead of the host: while it deals with the ids of one step, the device computes the next.

The device stops a row by itself at a stop id, at the last token allowed and where there are no numbers, so the step
that is ahead feeds such a row padding, and the cache is what it is without running ahead. Only the host can cancel.
The last token of an answer is then already fed, as it is once the conversation goes on, and the one drawn after it is
dropped. A row that may not be fed again (full slots, the model's window), a prompt that waits and a rotation that is
due stop the running ahead, not the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvlite.engine.captured import CapturedStep
from kvlite.engine.limits import Limits
from kvlite.engine.recordings import NotCapturable
from kvlite.engine.row import Job, Row

Work = tuple[tuple[Row, Job], ...]


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was started: whom it feeds, in the order of the rows, and the ids of all rows once it is done."""

    work: Work
    ids: Callable[[], list[int]]


@dataclass(frozen=True, slots=True)
class Landed:
    """A row's new token, and whether the step that is ahead feeds it already."""

    row: Row
    token: int
    is_fed: bool


class Ahead:
    """At most one step in flight while the ids of the one before are read. Rows count what was started for them.

    A step that cannot be recorded is not started; `obstacle` then says why, and no further one can be either.
    """

    def __init__(self, step: CapturedStep, limits: Limits) -> None:
        self.step = step
        self.flight: Flight | None = None
        self.obstacle: NotCapturable | None = None
        self._limits = limits

    def start(self, rows: Sequence[Row]) -> None:
        """Feed every row at work its unfed token; all `rows` of the cache are given."""
        assert self.flight is None
        work = tuple((row, row.job) for row in rows if row.job is not None)
        self.step.tensors.load(rows, self.step.cache)
        self._fly(work, self._launched(work))

    def land(self, rows: Sequence[Row]) -> list[Landed]:
        """Wait for the step in flight, once the next is started where there is one; tokens of ended jobs are dropped.

        Waits for the device.
        """
        flight = self.flight
        assert flight is not None
        ahead = self._launched(flight.work) if self._goes_on(flight.work, rows) else None
        ids = flight.ids()
        held = [(row, job) for row, job in flight.work if row.job is job]
        work = tuple((row, job) for row, job in held if ahead is not None and not job.ends_with(ids[row.index]))
        self._fly(work, ahead)
        fed = {row.index for row, _ in work}
        return [Landed(row, ids[row.index], row.index in fed) for row, _ in held]

    def drop(self) -> None:
        """Forget the step in flight and what it draws; what it feeds stays."""
        self.flight = None

    def _launched(self, work: Work) -> Callable[[], list[int]] | None:
        """Start a step that feeds the rows at work; None where it cannot be recorded."""
        try:
            return self.step.launch([row for row, _ in work])
        except NotCapturable as error:
            self.obstacle = error
            return None

    def _fly(self, work: Work, ids: Callable[[], list[int]] | None) -> None:
        """Hold the step that was started, if one was and it feeds anybody, and count what it feeds."""
        self.flight = None
        if ids is None or not work:
            return
        self.flight = Flight(work, ids)
        for row, _ in work:
            row.feed(1)
            self.step.cache.grow(slice(row.index, row.index + 1), (1,))

    def _goes_on(self, work: Work, rows: Sequence[Row]) -> bool:
        """Whether the same rows decode again, as far as the host knows, and one of them may draw another token."""
        if any(row.job is not job or job.ending is not None for row, job in work):
            return False
        if sum(row.job is not None for row in rows) > len(work) or any(self._is_stuck(row) for row, _ in work):
            return False
        return any(job.request.max_tokens != len(job.answer) + 1 for _, job in work)

    def _is_stuck(self, row: Row) -> bool:
        return self._limits.end(row) is not None or self._limits.must_turn(row, 1)
