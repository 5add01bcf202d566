"""The device's memory while an engine runs: the peak of each phase, and refused allocations as an error with advice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from kvlite.errors import OutOfMemory

LOOK_EVERY_S = 0.1
"""Time between two looks at the resident set, each of which costs as much as a few operations of a decode step."""


@contextmanager
def allocating() -> Iterator[None]:
    """Turn a refused allocation into OutOfMemory, with what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_named = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_named and "can't allocate memory" not in str(error):  # the CPU's allocator says so in words alone
            raise
        raise OutOfMemory(
            "the device is out of memory; give a smaller --kv-budget, --prefill-chunk or --batch-size, or --4bit"
        ) from error


class PeakMemory:
    """The highest bytes seen per phase: the allocator's on CUDA; elsewhere the resident set, looked at now and then."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._process = psutil.Process()
        self.peaks: dict[str, int] = {}
        self.reserved_peak_bytes = 0
        """The most that the allocator ever reserved, on CUDA."""
        self._looked_s: dict[str, float] = {}
        self._record("load")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as part of phase `name`. Raises OutOfMemory where it is refused memory."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        try:
            with allocating():
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
