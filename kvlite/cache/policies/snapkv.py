"""SnapKV (https://arxiv.org/abs/2404.14469): what the last queries attend to stays, with its neighbours.

    s_j  =  sum over the last `observed` queries of A[h, t, j]
    rank_j  =  mean of s over the `pooled` positions around j

The last `observed` tokens themselves stay, though never more than half of the slots.

Departures:
* The paper compresses a prompt once, after attending over all of it, and lets the cache grow from there. Here every
  chunk of the prompt evicts, and so does every decoded token: where fewer than `observed` queries are fed at once,
  what was held fades by 1 / `observed` per query, so that s always stands for as many queries.
* Neighbours are positions, not slots, and the mean is over those that are held: next to an evicted token there is
  nothing to add.
* Where several query heads share a KV head, their mean counts (the paper repeats keys and stores them per query head).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.neighbours import mean_of_neighbours

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SnapKV(Policy):
    """Keep the tokens in whose neighbourhood the last queries attend most, and those queries' own."""

    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "SnapKV: the tokens, and their neighbours, that the last queries attend to most"
    statistic: ClassVar[Statistic] = Statistic.MASS

    sinks: int = 0
    observed: int | None = 32
    pooled: int = 5

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("observed", self.observed is not None, "a number of queries")
        self._check("pooled", self.pooled >= 1 and self.pooled % 2 == 1, "an odd number of positions")

    def recent(self, slots: int) -> int:
        assert self.observed is not None
        return max(1, min(self.observed, slots // 2))

    def score(self, candidates: Candidates) -> Tensor:
        return mean_of_neighbours(candidates.statistic, candidates.pos, self.pooled // 2)
