"""Slots that nobody has written to take no memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from kvlite.cache.zeros import zeros

CPU = torch.device("cpu")
STATUS = Path("/proc/self/statm")


def resident() -> int:
    return int(STATUS.read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's /proc")
def test_zeros_take_memory_only_where_they_are_written() -> None:
    before = resident()
    held = zeros((64, 1 << 20), torch.bfloat16, CPU)
    unwritten = resident() - before
    held[:32].fill_(1)
    assert unwritten < held.nbytes // 4 < held.nbytes // 2 <= resident() - before + (1 << 20)
    assert not held[32:].any()


@pytest.mark.parametrize("rows", [1, 1 << 10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_zeros_have_a_storage_of_their_own_size(rows: int, dtype: torch.dtype) -> None:
    held = zeros((rows, 3, 1 << 9), dtype, CPU)
    assert held.shape == (rows, 3, 1 << 9) and held.dtype == dtype and held.is_contiguous() and not held.any()
    assert held.untyped_storage().nbytes() == held.nbytes


def test_refused_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        zeros((1 << 20,), torch.float32, CPU)
