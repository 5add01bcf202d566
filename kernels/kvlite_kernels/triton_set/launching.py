"""The Triton kernels as a cache calls them, over one scratch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvlite_kernels.reference import Geometry, Segment
from kvlite_kernels.slots import Arriving, Held, Ranking
from kvlite_kernels.statistic import Measure
from kvlite_kernels.triton_set import writing
from kvlite_kernels.triton_set.attention import attend_many, attend_one
from kvlite_kernels.triton_set.scratch import Scratch


class TritonKernels:
    """`kvlite_kernels.slots.SlotKernels` and `attend`, in Triton."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch

    def attend(
        self, q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, measure: Measure | None
    ) -> tuple[Tensor, list[Tensor]]:
        """As `reference.attend_segments`; a second segment ends with the keys of the queries themselves."""
        if len(segments) == 1 and q.shape[2] == 1:
            out, statistic, _ = attend_one(q, q_pos, segments[0], geometry, self.scratch, measure)
            return out, [] if statistic is None else [statistic]
        out, _, statistics = attend_many(q, q_pos, segments, geometry, self.scratch.processor.capability, measure)
        return out, statistics

    def insert(self, held: Held, new: Arriving, index: Tensor | slice) -> None:
        """As `kvlite_kernels.slots.SlotKernels` says."""
        writing.insert(held, new, index)

    def evict(self, held: Held, rows: slice, layers: int, q_pos: Tensor, ranking: Ranking, window: int | None) -> None:
        """As `kvlite_kernels.slots.SlotKernels` says."""
        writing.evict(held, rows, layers, q_pos, ranking, window)

    def decode(
        self,
        q: Tensor,
        q_pos: Tensor,
        held: Held,
        extent: int,
        geometry: Geometry,
        measure: Measure | None,
        retention: Tensor | None,
        ranking: Ranking | None,
    ) -> Tensor:
        """As `kvlite_kernels.slots.SlotKernels` says."""
        segment = Segment(held.k[:, :, :extent], held.v[:, :, :extent], held.pos[:, :, :extent])
        statistic = None if held.statistic is None else held.statistic[:, :, :extent]
        out, _, parts = attend_one(q, q_pos, segment, geometry, self.scratch, measure, statistic, retention, ranking)
        if ranking is not None:
            writing.move(held, self.scratch, parts)
        return out
