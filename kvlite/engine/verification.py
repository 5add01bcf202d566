"""One forward pass over a row's unfed token and drafted ones, of which those stay that turn out to be right.

They go into free slots and attend one after another, so that every token sees what it would see if it were decoded
alone, and counts for the policy as it would. What is not kept leaves no trace.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.engine.inputs import inputs
from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed
from kvlite.models.loaded import LoadedModel


class Verification:
    """The pass over the unfed id of `row` and `draft` behind it, for which the row has slots free.

    `kept` of these ids are part of the row so far.
    """

    def __init__(self, cache: SlotCache, row: Row, draft: tuple[int, ...], device: torch.device) -> None:
        assert row.unfed is not None
        self.kept = 0
        self.width = 1 + len(draft)
        self._cache, self._row = cache, row
        feed = Feed(slice(row.index, row.index + 1), ((row.unfed, *draft),), decodes=True)
        given = inputs(feed, [row], device)
        self._ids = given.ids
        self._step = cache.begin_turns(row.index, given.pos, given.rot, given.pins)

    def logits(self, loaded: LoadedModel) -> Tensor:
        """The logits behind each id, [T, V]."""
        return loaded.forward(self._ids, self._cache, self._step, self.width)[0]

    def keep_next(self) -> None:
        """Let the first id that is not kept yet be part of the row, as if it had been fed alone."""
        self._row.feed(1)
        self._cache.keep_next(self._step, self.kept)
        self.kept += 1

    def drop_rest(self) -> None:
        """Leave nothing of what is not kept."""
        self._cache.drop_rest(self._step, self.kept)
