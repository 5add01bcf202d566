"""StreamingLLM (https://arxiv.org/abs/2309.17453): attention sinks and a recent window, nothing in between.

Departure: keys keep their original rotation until the model's window ends (then every policy's keys are re-rotated),
where the paper rotates by cache index at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlite.cache.policy import Candidates, Policy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window(Policy):
    """Keep the first tokens and the last ones."""

    name: ClassVar[str] = "window"
    summary: ClassVar[str] = "StreamingLLM: the first tokens and the most recent ones, attention-free"

    def recent(self, slots: int) -> int:
        return 1  # the score already keeps the newest; protecting more would leave pins no room

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos.float()
