"""Peaks by phase on a GPU that is played, and refused allocations in the words of those who refuse."""

import pytest
import torch

from kvlite.engine.device_memory import PeakMemory, allocating
from kvlite.errors import OutOfMemory


class Allocator:
    """torch.cuda's statistics: `held` rises and falls, the peak is since the last reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = self.peak = self.asked = 0
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", self._read)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2 * self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def take(self, num_bytes: int) -> None:
        self.held += num_bytes
        self.peak = max(self.peak, self.held)

    def _read(self, device: torch.device) -> int:
        self.asked += 1
        return self.peak

    def _reset(self, device: torch.device) -> None:
        self.peak = self.held


def test_on_cuda_each_phase_has_its_peak_and_steps_of_one_phase_ask_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocator = Allocator(monkeypatch)
    allocator.take(100)
    memory = PeakMemory(torch.device("cuda", 0))
    with memory.phase("prefill"):
        allocator.take(50)
        allocator.take(-50)
    asked = allocator.asked
    for more in (5, 7, -4):
        with memory.phase("decode"):
            allocator.take(more)
    assert allocator.asked == asked + 1
    assert memory.peaks == {"load": 100, "prefill": 150, "decode": 112}
    assert memory.reserved_peak_bytes == 300


@pytest.mark.parametrize(
    "refused",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_refused_allocation_says_what_to_do(refused: Exception) -> None:
    with pytest.raises(OutOfMemory, match="give a smaller --kv-budget"), allocating():
        raise refused


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"), allocating():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
