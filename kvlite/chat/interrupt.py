"""What stops an answer from outside: Ctrl-C, twice within a second to end the process, and a limit of time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kvlite.errors import Interrupted, TimeLimit, UsageError

TWICE_S = 1.0


class Interrupts:
    """Counts presses of Ctrl-C, at the prompt and during an answer alike."""

    def __init__(self) -> None:
        self.pressed = False
        self._last_s = float("-inf")

    def press(self) -> None:
        """Note one press; raises Interrupted when it follows another within a second."""
        now = time.monotonic()
        if now - self._last_s < TWICE_S:
            raise Interrupted("interrupted")
        self._last_s = now
        self.pressed = True

    @contextmanager
    def calling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Within the block a press calls `cancel` instead of raising KeyboardInterrupt; where ignored it stays so."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background: Ctrl-C is meant for others
            yield
            return

        def on_sigint(signum: int, frame: FrameType | None) -> None:
            self.press()
            cancel()

        previous = signal.signal(signal.SIGINT, on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler if previous is None else previous)


class Deadline:
    """A limit on the seconds of a whole run; None is no limit. Raises UsageError unless it is above zero."""

    RING_AGAIN_S = 1.0  # an alarm may be raised into library code that swallows it

    def __init__(self, limit_s: float | None) -> None:
        if limit_s is not None and not 0 < limit_s < float("inf"):
            raise UsageError(f"--max-time is {limit_s}; give a number of seconds above 0")
        self.has_passed = False
        self._limit_s = limit_s
        self._cancel: Callable[[], None] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the time run: when it is over, TimeLimit is raised, or the answer in progress cancelled."""
        if self._limit_s is None:
            yield
            return
        previous = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self._limit_s, self.RING_AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    @contextmanager
    def calling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Within the block the end of the time calls `cancel` instead of raising TimeLimit."""
        self._cancel = cancel
        try:
            yield
        finally:
            self._cancel = None

    def check(self) -> None:
        """Raise TimeLimit if the time is over."""
        if self.has_passed:
            raise TimeLimit(f"--max-time {self._limit_s:g} s is over; the answer is incomplete")

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        self.has_passed = True
        if self._cancel is None:
            self.check()
        else:
            self._cancel()
