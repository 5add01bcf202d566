"""A limit on the time of a whole run, kept by an alarm: it rings in the midst of whatever the process is at."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kvlite.errors import TimeLimit

_Handler = Callable[[int, FrameType | None], None]


class Deadline:
    """A limit on the seconds of a whole run; None is no limit."""

    RING_AGAIN_S = 1.0  # an alarm may be raised into library code that swallows it
    WATCH_EVERY_S = 0.1

    def __init__(self, limit_s: float | None) -> None:
        self._has_passed = False
        self._limit_s = limit_s
        self._ends_s = math.inf
        self._cancel: Callable[[], None] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the time run: when it is over, TimeLimit is raised, or the answer in progress cancelled."""
        if self._limit_s is None:
            yield
            return
        self._ends_s = time.monotonic() + self._limit_s
        with _alarm(self._ring, self._limit_s, self.RING_AGAIN_S):
            yield

    @contextmanager
    def calling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Within the block the end of the time calls `cancel`; TimeLimit is raised after the block instead."""
        self._cancel = cancel
        try:
            yield
        finally:
            self._cancel = None
        self._check()

    @contextmanager
    def watching(self, watch: Callable[[], None]) -> Iterator[None]:
        """Within the block `watch` is called every WATCH_EVERY_S as well."""

        def tick(signum: int, frame: FrameType | None) -> None:
            watch()
            if time.monotonic() >= self._ends_s:
                self._ring(signum, frame)

        with _alarm(tick, self.WATCH_EVERY_S, self.WATCH_EVERY_S):
            yield

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        self._has_passed = True
        if self._cancel is None:
            self._check()
        else:
            self._cancel()

    def _check(self) -> None:
        if self._has_passed:
            raise TimeLimit(f"--max-time {self._limit_s:g} s is over; the answer is incomplete")


@contextmanager
def _alarm(handler: _Handler, first_s: float, again_s: float) -> Iterator[None]:
    """Within the block `handler` gets the process's one alarm; the alarm that was set before goes on afterwards."""
    previous, started_s = signal.getsignal(signal.SIGALRM), time.monotonic()
    left_s, interval_s = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, first_s, again_s)  # a short one rings before the next line
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, left_s - (time.monotonic() - started_s)), interval_s)
