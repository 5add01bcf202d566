"""Ctrl-C: the first press stops an answer, a second within a second also ends the process, after the answer is kept."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kvlite.errors import Interrupted

TWICE_S = 1.0


class Interrupts:
    """Presses of Ctrl-C, at the prompt and during an answer alike."""

    def __init__(self) -> None:
        self.pressed = False
        self._is_leaving = False
        self._last_s = float("-inf")

    def press(self) -> None:
        """Count one press; raises Interrupted at once on the third in quick succession."""
        self.check()
        now = time.monotonic()
        self._is_leaving = now - self._last_s < TWICE_S
        self._last_s = now
        self.pressed = True

    def check(self) -> None:
        """Raise Interrupted where one press has followed another within a second."""
        if self._is_leaving:
            raise Interrupted("interrupted")

    @contextmanager
    def calling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Call `cancel` on a press within the block, in place of KeyboardInterrupt; an ignored SIGINT stays ignored."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background: Ctrl-C is meant for others
            yield
            return

        def on_sigint(signum: int, frame: FrameType | None) -> None:
            self.press()
            cancel()

        self.pressed = False
        previous = signal.signal(signal.SIGINT, on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler if previous is None else previous)
