"""Layers of one shape and one number of slots, in the same tensors: what all of them do alike is done once a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from kvlite.cache.layer import LayerSlots
from kvlite.cache.slots import Slots
from kvlite.cache.step import Step

RANKED_TOGETHER = 1 << 18
"""Most slots, of all heads, rows and layers, that are ranked at once: some 120 bytes each while that lasts."""


class SlotGroup:
    """The layers `indices`, of which each has `rows` rows of `slots`, one layer after another.

    Where a token goes does not depend on its layer while there is room, and a victim of decode may be chosen after
    all layers have attended. Both are then one operation for the group instead of one per layer.
    """

    def __init__(self, indices: Sequence[int], slots: Slots, rows: int) -> None:
        self.layers: Mapping[int, LayerSlots] = {
            index: LayerSlots(index, slots, slice(start, start + rows))
            for index, start in zip(indices, range(0, rows * len(indices), rows), strict=True)
        }
        self._slots, self._rows = slots, rows
        a_layer = rows * slots.shape.kv_heads * (slots.slots + 1)
        run = max(1, RANKED_TOGETHER // a_layer) * rows
        ends = range(0, rows * len(indices), run)
        self._runs = [slots.part(slice(start, min(start + run, rows * len(indices)))) for start in ends]

    def begin(self, step: Step) -> None:
        """Place what `step` feeds, unless each head evicts for itself (prefill) or kernels place what they write."""
        placement = step.placements[self._slots.slots]
        is_placed = placement.index is not None or step.pos.shape[1] == 1
        if not is_placed or self._slots.kernels.slots is not None:
            return
        if isinstance(placement.index, Tensor):
            for slots, part in self._parts(step):
                slots.place(part)
        else:
            self._slots.place(step, len(self.layers))

    def end(self, step: Step) -> None:
        """Evict for what waits, after all layers have attended."""
        waits = step.placements[self._slots.slots].index is None and step.pos.shape[1] == 1
        if waits and self._slots.evicts_in_order:
            self._slots.evict_all_waiting(step, len(self.layers))
        elif waits and not self._slots.evicts_in_place:
            for slots, part in self._parts(step):
                slots.evict_waiting(part)

    def _parts(self, step: Step) -> Iterator[tuple[Slots, Step]]:
        """As many layers at once as are ranked together where all rows are fed, else one after another."""
        if step.rows == slice(0, self._rows):
            for run in self._runs:
                yield run, step.repeated(run.pos.shape[0] // self._rows)
        else:
            for layer in self.layers.values():
                yield layer, step
