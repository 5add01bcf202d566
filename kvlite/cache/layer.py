"""The slots of one layer, and attention over them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kvlite.cache.rotation import Rotation
from kvlite.cache.slots import Slots
from kvlite.cache.step import Placement, Step
from kvlite.cache.store import of_rows
from kvlite_kernels.reference import Geometry, Segment, Vectors
from kvlite_kernels.slots import Ranking
from kvlite_kernels.statistic import Measure


class LayerSlots(Slots):
    """The slots of attention layer `index`: `rows` of a group of layers, in the group's memory."""

    def __init__(self, index: int, group: Slots, rows: slice) -> None:
        part = group.part(rows)
        super().__init__(
            part.shape,
            part.slots,
            part.policy,
            part.kernels,
            part.store,
            part.pos,
            part.rot,
            part.statistic,
            part.order,
        )
        self.rotation: Rotation | None = None
        self._noise = None if self.policy.noise is None else replace(self.policy.noise, layer=index)
        self._measured: Measure | None = None
        self._viewed: tuple[tuple[int, int, int, bool], Segment, Tensor | None] | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """Attend over the live slots and the new tokens, then keep the best S: the one rule of prefill and decode.

        q [n, H_Q, T, D] and the new k [n, H_KV, T, D], v [n, H_KV, T, D_V], already rotated -> out [n, H_Q, T, D_V].
        In decode the victim may wait until all layers have attended (`SlotCache.end`).
        """
        placement = step.placements[self.slots]
        query, keys, values = self._encoded(q, k, v)
        if placement.index is not None:
            out = self._append(query, keys, values, step, geometry, placement)
        elif k.shape[2] == 1:
            out = self._decode(query, keys, values, step, geometry, placement.is_whole)
        else:
            out = self._prefill(query, keys, values, step, geometry)
        out = self.store.decode(out)
        return out if out.dtype is q.dtype else out.to(q.dtype)

    def _encoded(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Vectors, Vectors]:
        """In the store's form; kernels multiply in the model's dtype, and code keys and values as they insert them."""
        query, keys, values = self.store.encode(q, k, v)
        if self.kernels.slots is not None:
            return query.to(q.dtype), keys, values
        return query, *self.store.coded(keys, values)

    def rerotate(self, row: int, live: int, end: int) -> None:
        """Give the `live` keys of each head of a row consecutive rotations below `end`, in the order of `pos`."""
        if self.rotation is None or live == 0:
            return
        rank = self.pos[row, :, :live].argsort(-1).argsort(-1)
        new = rank.to(self.rot.dtype) + (end - live)
        held = self.rot[row, :, :live]
        self.store.rotate(row, new - held, self.rotation)
        held.copy_(new)

    def _append(
        self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry, placement: Placement
    ) -> Tensor:
        """Every row has room: write first, then slots and new tokens are one segment."""
        assert placement.index is not None
        self._stage(placement.index, k, v, step)
        if k.shape[2] == 1 and self.decodes_in_place:
            return self._attend_in_place(q, step, geometry, placement.extent, None)
        is_inside = geometry.window is None or placement.extent <= geometry.window
        segment, statistic = self._view(step.rows, placement.extent, placement.is_whole and is_inside)
        return self._attend(q, [segment], statistic, step, geometry)[0]

    def _prefill(self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry) -> Tensor:
        segment, statistic = self._view(step.rows, self.slots, False)
        segments = [segment, Segment(*self.store.coded(k, v), step.pos[:, None, -k.shape[2] :])]
        out, received = self._attend(q, segments, statistic, step, geometry)
        self.evict(segments, k, v, step, received[1] if received else None)
        return out

    def _decode(self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry, is_whole: bool) -> Tensor:
        """One token per row against full slots: it waits in the discard slot, so that all keys are one segment."""
        self._stage(slice(self.slots, self.slots + 1), k, v, step)
        if self.evicts_in_place:
            return self._attend_in_place(q, step, geometry, self.slots + 1, self.ranking(step))
        if self.decodes_in_place:
            return self._attend_in_place(q, step, geometry, self.slots + 1, None)
        segment, statistic = self._view(step.rows, self.slots + 1, is_whole and geometry.window is None)
        return self._attend(q, [segment], statistic, step, geometry)[0]

    def _stage(self, index: Tensor | slice, k: Vectors, v: Vectors, step: Step) -> None:
        if self.kernels.slots is None:
            self.write_placed(step.rows, index, k, v)
        else:
            self.write(step.rows, index, k, v, step)

    def _attend(
        self, q: Tensor, segments: list[Segment], statistic: Tensor | None, step: Step, geometry: Geometry
    ) -> tuple[Tensor, list[Tensor]]:
        """Attend, and add to the statistic of the slots, which are the first segment, what they received."""
        num_queries = q.shape[2]
        measure = self._measure(step, num_queries)
        q_pos = step.pos if num_queries == step.pos.shape[1] else step.pos[:, -num_queries:]
        out, received = self.kernels.attend(q, q_pos, segments, geometry, measure)
        if statistic is not None:
            if step.retention is not None:
                statistic *= step.retention
            statistic += received[0]
        return out, received

    def _measure(self, step: Step, num_queries: int) -> Measure | None:
        if self.statistic is None:
            return None
        weight, policy = step.weight, self.policy
        if num_queries != weight.shape[1]:
            weight = weight[:, -num_queries:]
        if self._measured is None or self._measured.weight is not weight:
            self._measured = Measure(policy.statistic, weight, policy.heads, self._noise, policy.observed)
        return self._measured

    def _attend_in_place(
        self, q: Tensor, step: Step, geometry: Geometry, extent: int, ranking: Ranking | None
    ) -> Tensor:
        """What `_attend` and, with a ranking, `evict` do, for one token per row."""
        assert self.kernels.slots is not None
        measure, held = self._measure(step, 1), self.held(step.rows)
        pos = step.pos[:, -1:]
        return self.kernels.slots.decode(q, pos, held, extent, geometry, measure, step.retention, ranking)

    def _view(self, rows: slice, extent: int, is_whole: bool) -> tuple[Segment, Tensor | None]:
        """The first `extent` slots and their statistic; the last view is kept, because decoding repeats it."""
        asked = (rows.start, rows.stop, extent, is_whole)
        if self._viewed is None or self._viewed[0] != asked:
            pos = of_rows(self.pos, rows).narrow(2, 0, extent)
            statistic = None if self.statistic is None else of_rows(self.statistic, rows).narrow(2, 0, extent)
            segment = Segment(*self.store.view(rows, extent), pos, is_whole)
            self._viewed = (asked, segment, statistic)
        return self._viewed[1:]
