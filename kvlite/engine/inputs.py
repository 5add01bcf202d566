"""The tensors of one forward pass, made from what the scheduler chose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed


def inputs(feed: Feed, rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Ids int64, positions and rotations int32, all [n, T] and right-aligned; pinned spans int32 [n, P, 2].

    Padding is 0 in ids and -1 elsewhere; the spans are None where no row has any.
    """
    width = max(feed.counts)
    most_pins = max(len(row.pins) for row in rows)

    def aligned(values: Sequence[Sequence[int]], padding: int, dtype: torch.dtype) -> Tensor:
        filled = [[padding] * (width - len(value)) + [*value] for value in values]
        return torch.tensor(filled, dtype=dtype, device=device)

    pos, rot = (
        aligned(
            [range(start, start + count) for start, count in zip(starts, feed.counts, strict=True)], -1, torch.int32
        )
        for starts in ([row.seen for row in rows], [row.rot for row in rows])
    )
    return aligned(feed.ids, 0, torch.int64), pos, rot, pinned(rows, most_pins).to(device) if most_pins else None


def pinned(rows: Sequence[Row], most: int) -> Tensor:
    """The pinned spans of `rows`, of which none has more than `most`, filled up with empty ones: int32 [n, most, 2]."""
    return torch.tensor([[*row.pins, *[(0, 0)] * (most - len(row.pins))] for row in rows], dtype=torch.int32)
