"""Memory that nobody wrote is NaN: a kernel that reads past its mask, or leaves a lane unwritten, is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

_empty = torch.empty


def poisoned_empty(*shape: int, **options: Any) -> Tensor:
    """`torch.empty` with NaN in it, or the most negative number of an integer dtype."""
    tensor = _empty(*shape, **options)
    return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `torch.empty` of the test is poisoned."""
    monkeypatch.setattr(torch, "empty", poisoned_empty)


def surrounded(x: Tensor, before: int = 1, after: int = 3) -> Tensor:
    """`x` [B, H, N, ...] as a view into a larger poisoned tensor: a row before it, keys after it."""
    rows, heads, count, *tail = x.shape
    whole = poisoned_empty(rows + before, heads, count + after, *tail, dtype=x.dtype)
    view = whole[before:, :, :count]
    view.copy_(x)
    return view
