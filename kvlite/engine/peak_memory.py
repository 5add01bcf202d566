"""Peak memory of each phase: the allocator's on CUDA; elsewhere the resident set, looked at now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

LOOK_EVERY_S = 0.1
"""Time between two looks at the resident set, each of which costs as much as a few operations of a decode step."""


class PeakMemory:
    """Keeps the highest bytes seen per phase, and on CUDA the most the allocator ever reserved."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._process = psutil.Process()
        self.peaks: dict[str, int] = {}
        self.reserved_peak_bytes = 0
        self._looked_s: dict[str, float] = {}
        self._record("load")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as part of phase `name`."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        try:
            yield
        finally:
            self._record(name)

    def _record(self, name: str) -> None:
        if self._cuda is None:
            now = time.monotonic()
            if now - self._looked_s.get(name, -LOOK_EVERY_S) < LOOK_EVERY_S:
                return
            self._looked_s[name] = now
            held = int(self._process.memory_info().rss)
        else:
            held = torch.cuda.max_memory_allocated(self._cuda)
            reserved = torch.cuda.max_memory_reserved(self._cuda)
            self.reserved_peak_bytes = max(self.reserved_peak_bytes, reserved)
        self.peaks[name] = max(self.peaks.get(name, 0), held)
