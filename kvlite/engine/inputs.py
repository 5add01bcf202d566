"""The tensors of one forward pass, made from what the scheduler chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.cache.step import Echo
from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed


@dataclass(frozen=True, slots=True)
class Inputs:
    """Ids int64 [n, T + E], positions and rotations int32 [n, T], right-aligned; pinned spans int32 [n, P, 2].

    Padding is 0 in ids and -1 elsewhere; the spans are None where no row has any. The E are those of the echo.
    """

    ids: Tensor
    pos: Tensor
    rot: Tensor
    pins: Tensor | None
    echo: Echo | None


def inputs(feed: Feed, rows: Sequence[Row], device: torch.device) -> Inputs:
    """The tensors of `feed` to these rows."""
    ids = aligned(feed.ids, 0, torch.int64, device)
    pos, rot = (spans(starts, feed.ids, device) for starts in ([row.seen for row in rows], [row.rot for row in rows]))
    most_pins = max(len(row.pins) for row in rows)
    pins, echo = pinned(rows, most_pins).to(device) if most_pins else None, None
    if any(feed.echo):
        echo = echoed(feed, rows, device)
        ids = torch.cat([ids, aligned(feed.echo, 0, torch.int64, device)], 1)
    return Inputs(ids, pos, rot, pins, echo)


def echoed(feed: Feed, rows: Sequence[Row], device: torch.device) -> Echo:
    """The echo of `feed`: the ids that ask for it have no weight, those behind them repeat the newest of their row."""
    ends = [row.seen + count for row, count in zip(rows, feed.counts, strict=True)]
    rots = [row.rot + count for row, count in zip(rows, feed.counts, strict=True)]
    pos, rot = (spans(starts, feed.echo, device) for starts in (ends, rots))
    repeated = [max(0, len(ids) - feed.asks) for ids in feed.echo]
    first, start = (
        torch.tensor([end - count for end, count in zip(ends, counts, strict=True)], device=device)[:, None, None]
        for counts in (repeated, feed.counts)
    )
    asking = pos >= torch.tensor(ends, device=device)[:, None] + feed.asks
    weight = torch.nn.functional.pad(asking.float(), (feed.width, 0))
    is_own = all(count <= own for count, own in zip(repeated, feed.counts, strict=True))
    is_even = len({*map(len, feed.echo)}) == len({*feed.counts}) == 1
    return Echo(pos, rot, weight, first, start, max(repeated), is_own, is_even)


def spans(starts: Sequence[int], values: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """A number for each of `values`, counted from the start of its row: int32 [n, T]."""
    counted = [range(start, start + len(value)) for start, value in zip(starts, values, strict=True)]
    return aligned(counted, -1, torch.int32, device)


def aligned(values: Sequence[Sequence[int]], padding: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of `values` [n, T], the shorter ones padded on the left."""
    width = max(map(len, values))
    filled = [[padding] * (width - len(value)) + [*value] for value in values]
    return torch.tensor(filled, dtype=dtype, device=device)


def pinned(rows: Sequence[Row], most: int) -> Tensor:
    """The pinned spans of `rows`, of which none has more than `most`, filled up with empty ones: int32 [n, most, 2]."""
    return torch.tensor([[*row.pins, *[(0, 0)] * (most - len(row.pins))] for row in rows], dtype=torch.int32)
