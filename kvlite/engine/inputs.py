"""The tensors of one forward pass, made from what the scheduler chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kvlite.cache.step import Echo
from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed

Spans = tuple[tuple[int, int], ...]


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
    """The tensors of `feed` to these rows, in one copy from the host; spans are copied when they change."""
    padded = [_padded(feed.ids, 0)]
    for starts in ([row.seen for row in rows], [row.rot for row in rows]):
        padded.append(_padded(_counted(starts, feed.ids), -1))
    together = _on(padded, torch.int64, device)
    ids, (pos, rot) = together[0], together[1:].int()
    pins, echo = pinned(rows, device), None
    if any(feed.echo):
        echo = echoed(feed, rows, device)
        ids = torch.cat([ids, _on(_padded(feed.echo, 0), torch.int64, device)], 1)
    return Inputs(ids, pos, rot, pins, echo)


def echoed(feed: Feed, rows: Sequence[Row], device: torch.device) -> Echo:
    """The echo of `feed`: the ids that ask for it have no weight, those behind them repeat the newest of their row."""
    ends = [row.seen + count for row, count in zip(rows, feed.counts, strict=True)]
    rots = [row.rot + count for row, count in zip(rows, feed.counts, strict=True)]
    both = [_padded(_counted(starts, feed.echo), -1) for starts in (ends, rots)]
    pos, rot = _on(both, torch.int32, device)
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


def pinned(rows: Sequence[Row], device: torch.device) -> Tensor | None:
    """The pinned spans of `rows`, filled up with empty ones: int32 [n, P, 2], only to read; None for none."""
    pins = tuple(row.pins for row in rows)
    return _pinned(pins, device) if any(pins) else None


@lru_cache(maxsize=16)  # they stay the same from step to step
def _pinned(pins: tuple[Spans, ...], device: torch.device) -> Tensor:
    most = max(map(len, pins))
    return _on([[*row, *[(0, 0)] * (most - len(row))] for row in pins], torch.int32, device)


def _counted(starts: Sequence[int], values: Sequence[Sequence[int]]) -> list[range]:
    """A number for each of `values`, counted from the start of its row."""
    return [range(start, start + len(value)) for start, value in zip(starts, values, strict=True)]


def _padded(values: Sequence[Sequence[int]], padding: int) -> list[list[int]]:
    """Rows of `values` [n, T], the shorter ones padded on the left."""
    width = max(map(len, values))
    return [[padding] * (width - len(value)) + [*value] for value in values]


def _on(numbers: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `numbers` on `device`; the host does not wait until a GPU has it."""
    held = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return held.to(device, non_blocking=True)
