"""Ctrl-C stops an answer; twice within a second it also ends the process, once what there is of the answer is kept."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kvlite.errors import Interrupted

TWICE_S = 1.0


class Interrupts:
    """Counts presses of Ctrl-C, at the prompt and during an answer alike."""

    def __init__(self) -> None:
        self.pressed = False
        self._is_leaving = False
        self._last_s = float("-inf")

    def press(self) -> None:
        """Note one press; raises Interrupted on the third in quick succession, wherever the process is."""
        self.check()
        now = time.monotonic()
        self._is_leaving = now - self._last_s < TWICE_S
        self._last_s = now
        self.pressed = True

    def check(self) -> None:
        """Raises Interrupted when one press has followed another within a second."""
        if self._is_leaving:
            raise Interrupted("interrupted")

    @contextmanager
    def calling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Within the block a press calls `cancel` instead of raising KeyboardInterrupt; where ignored it stays so."""
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
