"""The tensors of one forward pass, made from what the scheduler chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed


@dataclass(frozen=True, slots=True)
class Inputs:
    """`counts[i]` real tokens of each of n rows, right-aligned in T columns.

    `ids` int64, `pos` and `rot` int32, all [n, T]; padding is 0 in ids and -1 elsewhere. `pins` int32 [n, P, 2] are the
    rows' pinned spans, filled up with empty ones; None where no row has any.
    """

    ids: Tensor
    pos: Tensor
    rot: Tensor
    counts: tuple[int, ...]
    pins: Tensor | None

    @classmethod
    def of(cls, feed: Feed, rows: Sequence[Row], device: torch.device) -> Inputs:
        """The inputs that feed `rows` what `feed` says."""
        counts = tuple(len(ids) for ids in feed.ids)
        width = max(counts)
        most_pins = max(len(row.pins) for row in rows)

        def aligned(values: list[tuple[int, ...]], padding: int, dtype: torch.dtype) -> Tensor:
            filled = [(padding,) * (width - len(value)) + value for value in values]
            return torch.tensor(filled, dtype=dtype, device=device)

        def counted(starts: list[int]) -> Tensor:
            ranges = [tuple(range(start, start + count)) for start, count in zip(starts, counts, strict=True)]
            return aligned(ranges, -1, torch.int32)

        return cls(
            ids=aligned(list(feed.ids), 0, torch.int64),
            pos=counted([row.seen for row in rows]),
            rot=counted([row.rot for row in rows]),
            counts=counts,
            pins=pinned(rows, most_pins).to(device) if most_pins else None,
        )


def pinned(rows: Sequence[Row], most: int) -> Tensor:
    """The pinned spans of `rows`, of which none has more than `most`, filled up with empty ones: int32 [n, most, 2]."""
    return torch.tensor([[*row.pins, *[(0, 0)] * (most - len(row.pins))] for row in rows], dtype=torch.int32)
