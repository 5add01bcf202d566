"""A chunk of a prompt that is recorded once and run again: the one shape that a long prompt repeats.

That is a full chunk of one row whose slots have no room for it. As long as they have, every chunk reaches further than
the one before, and of a prompt's end there is one; both are fed eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.reach import slot_counts
from kvlite.cache.step import Placement
from kvlite.engine.recordings import Recordings
from kvlite.engine.row import Row
from kvlite.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """What the kernels of a chunk depend on: where the row lies, and how many spans it pins."""

    row: int
    pins: int = 1


class CapturedChunk:
    """Chunks of `cache.plan.chunk` tokens of `loaded` for which `cache` evicts in every layer, one row at a time."""

    def __init__(self, loaded: LoadedModel, cache: SlotCache, recordings: Recordings) -> None:
        self.loaded = loaded
        self.cache = cache
        self.recordings = recordings
        self._ids = torch.zeros(1, cache.plan.chunk, dtype=torch.int64, device=cache.device)
        self._logits = torch.zeros(1, 1, loaded.shape.vocab, device=cache.device)

    @property
    def num_bytes(self) -> int:
        """Bytes of ids and logits on the device."""
        return self._ids.nbytes + self._logits.nbytes

    def rehearse(self) -> None:
        """Record the chunk of the first row. Raises NotCapturable."""
        self._recording(ChunkKey(0))

    def takes(self, row: Row, ids: tuple[int, ...]) -> bool:
        """Whether feeding `ids` to a row has the recorded shape."""
        cache, count = self.cache, len(ids)
        return count == cache.plan.chunk and all(
            cache.live(row.index, slots) + count > slots for slots in slot_counts(cache)
        )

    def feed(self, row: Row, ids: tuple[int, ...]) -> Tensor:
        """Feed a row `ids`: the logits fp32 [1, 1, V] behind the last, until the next chunk.

        Raises NotCapturable, and then nothing was fed. Waits for the device.
        """
        tensors = self.recordings.tensors
        tensors.place(row)
        self._ids.copy_(torch.tensor([ids]))
        self._recording(ChunkKey(row.index, tensors.num_pins))()
        self.cache.grow(slice(row.index, row.index + 1), (len(ids),))
        return self._logits

    def _recording(self, key: ChunkKey) -> Callable[[], None]:
        return self.recordings.of(key, lambda: self._feed(key))

    @torch.inference_mode()
    def _feed(self, key: ChunkKey) -> None:
        """The recorded work; of a row that stands still all is padding."""
        row, tensors = slice(key.row, key.row + 1), self.recordings.tensors
        at = tensors.first(key.row + 1)
        column = torch.arange(self._ids.shape[1], device=self.cache.device)
        is_going = at.going[row, None] > 0
        pos, rot = (torch.where(is_going, start[row, None] + column, -1).int() for start in (at.seen, at.rot))
        full = {slots: Placement(slots, None) for slots in slot_counts(self.cache)}
        step = self.cache.placed(row, pos, rot, (0,), tensors.pins(key.pins)[row], full)
        self._logits.copy_(self.loaded.forward(self._ids, self.cache, step))
