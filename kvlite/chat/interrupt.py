"""Ctrl-C stops an answer; twice within a second it ends the process."""

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
