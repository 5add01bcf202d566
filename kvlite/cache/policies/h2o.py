"""H2O as published: Heavy-Hitter Oracle (https://arxiv.org/abs/2306.14048).

    s_j  <-  s_j + sum over the queries of A[h, t, j]

Half of the slots are the recent window, half go to the highest sums. No sinks, no decay, no age: the baseline that
the default policy repairs. One departure: the paper has one KV head per query head; where several query heads share
a KV head, their mean is summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy
from kvlite_kernels.kinds import Statistic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class H2O(Policy):
    """Keep the tokens with the largest accumulated attention, and the most recent half."""

    name: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "H2O as published: accumulated attention mass, half of the slots recent"
    statistic: ClassVar[Statistic] = Statistic.MASS

    sinks: int = 0

    def recent(self, slots: int) -> int:
        return max(1, slots // 2)

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.statistic
