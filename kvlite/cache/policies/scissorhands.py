"""Scissorhands (https://arxiv.org/abs/2305.17118): tokens that were pivotal lately will be pivotal again.

    s_j  =  how many of the last `observed` queries saw t keys and gave this one A[h, t, j] < 1 / t
    the highest s_j goes first

Departures:
* The history is exact where a chunk holds as many queries. In decode it fades by 1 / `observed` per query instead of
  ending at once, which takes 4 bytes per slot where a record of the last 400 queries would take 50.
* The paper drops half of the budget when it is full; here exactly as many go as come, so that the bytes are used.
* The paper gives later layers more; here all layers have as many slots.
* Where several query heads share a KV head, their counts are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy
from kvlite_kernels.kinds import Statistic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scissorhands(Policy):
    """Keep the tokens that were least often below the average share of attention, and the `newest`."""

    name: ClassVar[str] = "scissorhands"
    summary: ClassVar[str] = "Scissorhands: the tokens that recent queries least often gave less than an equal share"
    statistic: ClassVar[Statistic] = Statistic.BELOW

    sinks: int = 0
    observed: int | None = 400
    newest: int = 10

    def recent(self, slots: int) -> int:
        return self.newest

    def score(self, candidates: Candidates) -> Tensor:
        return -candidates.statistic
