"""Keyformer (https://arxiv.org/abs/2403.09054): attention mass, regularised for the tokens that are gone.

    s_j  <-  s_j + sum over the queries of softmax_j((x[h, t, j] + g[h, t, j]) / tau(t))

x are the logits, g is Gumbel noise, and the softmax runs over the keys that are held: where keys are evicted, the
noise and the temperature keep it from growing ever more certain of the rest. `recent_share` of the slots are the
newest tokens, the others go to the highest sums.

Departures:
* The noise is a hash of seed, layer, query head and the two positions, so that an answer depends on no generator and
  no neighbour in a batch.
* tau rises from 1 to 2 over the tokens to be generated in the paper; a conversation has no such number, so it rises
  over the first `ramp` positions.
* The paper keeps a share of the prompt; here the budget says how many stay.
* Where several query heads share a KV head, their mean is summed. A learned sink logit takes no part in the softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy
from kvlite_kernels.kinds import Noise, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Keyformer(Policy):
    """Keep the tokens with the largest accumulated Gumbel softmax, and the most recent ones."""

    name: ClassVar[str] = "keyformer"
    summary: ClassVar[str] = "Keyformer: accumulated attention, regularised by Gumbel noise and a rising temperature"
    statistic: ClassVar[Statistic] = Statistic.GUMBEL

    sinks: int = 0
    recent_share: float = 0.3
    seed: int = 0
    first_temperature: float = 1.0
    last_temperature: float = 2.0
    ramp: int = 1024

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        self._check("recent_share", 0 <= self.recent_share < 1, "0 or more and less than 1")
        self._check("first_temperature", self.first_temperature > 0, "more than 0")
        self._check("last_temperature", self.last_temperature > 0, "more than 0")
        self._check("ramp", self.ramp >= 1, "1 or more")

    @property
    def noise(self) -> Noise:
        return Noise(self.seed, self.first_temperature, self.last_temperature, self.ramp)

    def recent(self, slots: int) -> int:
        return max(1, int(slots * self.recent_share))

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.statistic
