"""Intervals of 95 %: Wilson's for a share of questions, a seeded bootstrap over conversations for everything else."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

RESAMPLES = 1000
Z95 = 1.959964

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval that holds the true one in 95 of 100 such measurements."""

    value: float
    low: float
    high: float


def wilson(right: int, asked: int) -> Estimate:
    """The share of right answers (Wilson 1927, the score interval), which takes the questions as independent."""
    if not asked:
        return Estimate(math.nan, math.nan, math.nan)
    share, square = right / asked, Z95**2
    middle = (share + square / (2 * asked)) / (1 + square / asked)
    half = Z95 / (1 + square / asked) * math.sqrt(share * (1 - share) / asked + square / (4 * asked**2))
    low, high = min(share, middle - half), max(share, middle + half)
    return Estimate(share, max(0.0, low), min(1.0, high))  # rounding at the ends


def bootstrap(items: Sequence[Item], statistic: Callable[[Sequence[Item]], float], seed: int = 0) -> Estimate:
    """A statistic of conversations or texts, which are drawn again with replacement (Efron 1979, percentiles).

    What one conversation holds stays together, so that questions in one need not be independent.
    """
    value = statistic(items) if items else math.nan
    rng = random.Random(seed)
    drawn = (statistic(rng.choices(items, k=len(items))) for _ in range(RESAMPLES if items else 0))
    found = sorted(draw for draw in drawn if not math.isnan(draw))
    if not found:
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, found[int(0.025 * len(found))], found[min(len(found) - 1, int(0.975 * len(found)))])
