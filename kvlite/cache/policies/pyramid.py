"""PyramidKV (https://arxiv.org/abs/2406.02069): SnapKV's choice, with more slots in the first layers than in the last.

    S_l falls in a straight line with the depth l, from (2 - 1 / beta) (S - w) + w to (S - w) / beta + w

S is the mean, w the recent window that every layer has on top. Where the first layers would have more than the model's
window, they have that, and the others share the rest. The bytes of all layers together stay inside the budget; a
prompt goes through in chunks that fit the smallest layer.

Departures: those of SnapKV. Layers that slide keep their own windows; depth is counted among the others. Where nothing
is evicted (`--on-full stop` or `error`) all layers have as many slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlite.cache.policies.snapkv import SnapKV


@dataclass(frozen=True, slots=True)
class Pyramid(SnapKV):
    """Keep what SnapKV keeps, with slots that fall linearly with depth; the last layer has 1 / `beta` of the mean."""

    name: ClassVar[str] = "pyramid"
    summary: ClassVar[str] = "PyramidKV: SnapKV with many slots in the first layers and few in the last"

    beta: int = 20

    def __post_init__(self) -> None:
        SnapKV.__post_init__(self)
        self._check("beta", self.beta >= 1, "1 or more")

    def layer_slots(self, slots: int, most: int, depth: int, layers: int) -> int:
        if layers == 1:
            return slots
        window = min(slots, self.recent(slots))
        mean = slots - window
        top = min(2 * mean - mean // self.beta, most - window)
        bottom = 2 * mean - top
        return window + top - (top - bottom) * depth // (layers - 1)
