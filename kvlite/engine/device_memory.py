"""The device's memory while an engine runs: the peak of each phase, and refused allocations as an error with advice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from kvlite.errors import OutOfMemory, is_out_of_memory

LOOK_EVERY_S = 0.1
"""Time between two looks at the resident set, each of which costs as much as a few operations of a decode step."""


@contextmanager
def allocating() -> Iterator[None]:
    """Turn a refused allocation into OutOfMemory, with what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "the device is out of memory; give a smaller --kv-budget, --prefill-chunk or --batch-size, or --4bit"
        ) from error


class PeakMemory:
    """The highest bytes seen per phase: the allocator's on CUDA; elsewhere the resident set, looked at now and then.

    CUDA's figures take 0.2 ms to ask for, so they are read where one phase follows another and when they are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._process = psutil.Process()
        self.reserved_peak_bytes = 0
        """The most that the allocator had reserved up to the last look, on CUDA."""
        self._peaks: dict[str, int] = {}
        self._looked_s: dict[str, float] = {}
        self._phase = "load"
        self._look()

    @property
    def peaks(self) -> dict[str, int]:
        """The most bytes in each phase so far."""
        if self._cuda is not None:
            self._look()
        return dict(self._peaks)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as part of phase `name`. Raises OutOfMemory where it is refused memory."""
        if self._cuda is not None and name != self._phase:
            self._look()
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self._phase = name
        try:
            with allocating():
                yield
        finally:
            if self._cuda is None:
                self._look()

    def _look(self) -> None:
        """Take what is held now, on CUDA the most since the phase began, into the phase's peak."""
        if self._cuda is None:
            now = time.monotonic()
            if now - self._looked_s.get(self._phase, -LOOK_EVERY_S) < LOOK_EVERY_S:
                return
            self._looked_s[self._phase] = now
            held = int(self._process.memory_info().rss)
        else:
            held = torch.cuda.max_memory_allocated(self._cuda)
            self.reserved_peak_bytes = max(self.reserved_peak_bytes, torch.cuda.max_memory_reserved(self._cuda))
        self._peaks[self._phase] = max(self._peaks.get(self._phase, 0), held)
