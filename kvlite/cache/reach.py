"""Where a decode step writes and how far it reads, as its graph sees it: shapes that stay while tokens come and go.

The eager step (`SlotCache.begin`) places each token by numbers of the host, and reads as few slots as hold one. A
recorded step runs again for the tokens that follow, so it takes its places from tensors and reads up to an extent that
holds for many steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvlite.cache.cache import EXTENT_STEP, SlotCache
from kvlite.cache.step import Placement

Reach = tuple[tuple[int, int | None], ...]
"""For the layers of each number of slots: how many slots attention reads, None where a token goes for each that comes.
"""


def slot_counts(cache: SlotCache) -> tuple[int, ...]:
    """The different numbers of slots that layers have, ascending."""
    return tuple(sorted({layer.slots for layer in cache.layers.values()}))


def reach(cache: SlotCache, rows: Sequence[int]) -> Reach:
    """How far one more token in each of `rows` reaches."""
    reaches: list[tuple[int, int | None]] = []
    for slots in slot_counts(cache):
        longest = 1 + max(cache.live(row, slots) for row in rows)
        extent = min(slots, -(-longest // EXTENT_STEP) * EXTENT_STEP)
        reaches.append((slots, None if longest > slots else extent))
    return tuple(reaches)


def farthest(cache: SlotCache) -> Reach:
    """The reach of a step in full slots."""
    return tuple((slots, None) for slots in slot_counts(cache))


def placements(reaches: Reach, live: Mapping[int, Tensor], is_going: Tensor) -> dict[int, Placement]:
    """One token for each of n rows that `is_going` bool [n]; `live` int64 [n] by number of slots says where it is next.

    What the other rows feed is padding and goes to the discard slot. Nothing is promised whole, because a row may stop
    before the host knows.
    """
    return {
        slots: Placement(slots, None)
        if extent is None
        else Placement(extent, torch.where(is_going, live[slots], slots)[:, None, None])
        for slots, extent in reaches
    }
