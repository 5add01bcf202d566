"""The tensors of one forward pass, made from what the scheduler chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Ids int64 [n, T], positions and rotations int32 [n, T], right-aligned; pinned spans int32 [n, P, 2].

    Padding is 0 in ids and -1 elsewhere; the spans are None where no row has any.
    """

    ids: Tensor
    pos: Tensor
    rot: Tensor
    pins: Tensor | None


def inputs(feed: Feed, rows: Sequence[Row], device: torch.device) -> Inputs:
    """The tensors of `feed` to these rows, in one copy from the host; spans are copied when they change."""
    padded = [_padded(feed.ids, 0)]
    back = [row.seen - row.echoed if feed.is_again else 0 for row in rows]
    for ends in ([row.seen for row in rows], [row.rot for row in rows]):
        starts = [end - count for end, count in zip(ends, back, strict=True)]
        padded.append(_padded(_counted(starts, feed.ids), -1))
    together = _on(padded, torch.int64, device)
    ids, (pos, rot) = together[0], together[1:].int()
    return Inputs(ids, pos, rot, pinned(rows, device))


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


def on_host(numbers: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `numbers` on the host, which need not wait while a GPU that is the `device` copies it."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")


def _on(numbers: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `numbers` on `device`; the host does not wait until a GPU has it."""
    return on_host(numbers, dtype, device).to(device, non_blocking=True)
