"""Heavy hitters, the default: H2O (https://arxiv.org/abs/2306.14048) with its known defects repaired.

    s_j  <-  decay * s_j + mean over the group of sum over the queries of A[h, t, j]
    rank_j = mean over the `pooled` positions around j of s

Departures from the published method, each for a measured defect of it:
* The sum fades. A plain sum favours early tokens, which have been summed for longest, until nothing new can stay, and
  what an old question looked at says little of the next one.
* Neighbours share (as in SnapKV, https://arxiv.org/abs/2404.14469). Attention falls on one token of what was said;
  alone it is of no use, so that spans stay and not single tokens. Fading and sharing only help together.
* Grace. A new token has received next to nothing and would be the next victim; the recent window covers at least
  `grace` tokens whatever the budget.
* Grouped-query attention. Scores belong to KV heads: the mean over the query heads that share one; `heads="max"` takes
  the most attentive of them.
* The first `sinks` tokens stay (StreamingLLM, https://arxiv.org/abs/2309.17453), which keeps tiny budgets coherent.
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
class HeavyHitter(Policy):
    """Keep the spans with most attention lately; `recent_share` of the slots are the recent window."""

    name: ClassVar[str] = "heavy-hitter"
    summary: ClassVar[str] = (
        "H2O repaired: attention that fades, shared by neighbours, sinks, a recent window (the default)"
    )
    statistic: ClassVar[Statistic] = Statistic.MASS

    decay: float = 0.95
    grace: int = 4
    recent_share: float = 0.25
    pooled: int = 9

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("grace", self.grace >= 1, "1 or more")
        self._check("recent_share", 0 <= self.recent_share < 1, "0 or more and less than 1")
        self._check("pooled", self.pooled >= 1 and self.pooled % 2 == 1, "an odd number of positions")

    def recent(self, slots: int) -> int:
        return max(self.grace, int(slots * self.recent_share))

    def score(self, candidates: Candidates) -> Tensor:
        if self.pooled == 1:
            return candidates.statistic
        return mean_of_neighbours(candidates.statistic, candidates.pos, self.pooled // 2)
