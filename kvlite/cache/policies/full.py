"""No eviction: the exact cache, bounded. When the slots are full the answer stops, or fails, as `--on-full` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Full(Policy):
    """Keep everything; only tokens that a sliding window has passed make room."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "no eviction: stop (or fail) when the budget is full"
    evicts: ClassVar[bool] = False

    sinks: int = 0

    def recent(self, slots: int) -> int:
        return 1

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos.float()
