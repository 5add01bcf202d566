"""TOVA (https://arxiv.org/abs/2401.06104): what the last query attends to least goes.

    s_j  =  mean over all heads of the layer of A[h, last query, j]

All heads of a layer keep the same tokens. No sinks, no recent window: the paper finds that the method keeps both by
itself. Departures: the newest token itself always stays; a prompt is fed in chunks and evicts after each one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy
from kvlite_kernels.kinds import Heads, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TOVA(Policy):
    """Keep the tokens that the last query attends to most, the same in all heads."""

    name: ClassVar[str] = "tova"
    summary: ClassVar[str] = "TOVA: the tokens that the last query attends to most, the same in all heads of a layer"
    statistic: ClassVar[Statistic] = Statistic.MASS

    sinks: int = 0
    observed: int | None = 1
    heads: Heads = "layer"

    def recent(self, slots: int) -> int:
        return 1

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.statistic
