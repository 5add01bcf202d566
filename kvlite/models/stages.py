"""How long the stages of loading took."""

from __future__ import annotations

import time


class Stages:
    """Seconds by stage, each from the one before; kept in the order in which they were passed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def passed(self, name: str) -> None:
        """The stage `name` ends here."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last_s
        self._last_s = now
