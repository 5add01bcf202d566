"""Peak memory of each phase: the allocator's on CUDA, the resident set elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


class Meter:
    """Keeps the highest bytes seen per phase name."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._process = psutil.Process()
        self.peaks: dict[str, int] = {}
        self.record("load", self._peak())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as part of phase `name`."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        yield
        self.record(name, self._peak())

    def record(self, name: str, num_bytes: int) -> None:
        """Raise the peak of a phase."""
        self.peaks[name] = max(self.peaks.get(name, 0), num_bytes)

    def _peak(self) -> int:
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda)
        return int(self._process.memory_info().rss)
