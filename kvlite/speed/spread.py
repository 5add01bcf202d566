"""Repeated timings as one value: the middle, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds: the median of `count` timings, the 99th percentile, and the lowest and highest median of a round."""

    median_s: float
    p99_s: float
    low_s: float
    high_s: float
    count: int

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> Spread:
        """The spread of the timings of several rounds, none of them empty."""
        timings = sorted(seconds for each in rounds for seconds in each)
        medians = [median(each) for each in rounds]
        last = timings[-1 - len(timings) // 100]  # of fewer than a hundred the longest
        return cls(median(timings), last, min(medians), max(medians), len(timings))
