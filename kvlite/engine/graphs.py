"""Recording a piece of work once and running it again, and reading what it leaves one step late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Makes a function that does again, on the same tensors, what `body` does."""

    num_bytes: int
    """What the recordings hold on the device."""

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """The function; `body` has run before, and need not run now."""
        ...

    def read(self, tokens: Tensor) -> Callable[[], list[int]]:
        """Start to copy int64 [n] as it is now to the host; the function that is returned waits for it."""
        ...


class Rerun:
    """Records nothing: the body runs again. For devices without graphs, where a test needs no more of one."""

    num_bytes = 0

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        return body

    def read(self, tokens: Tensor) -> Callable[[], list[int]]:
        return tokens.clone().tolist


class CudaGraphs:
    """CUDA graphs over one pool of memory: what one leaves between its kernels, the next overwrites."""

    def __init__(self, device: torch.device, rows: int) -> None:
        self.num_bytes = 0
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._landing = [torch.zeros(rows, dtype=torch.int64, pin_memory=True) for _ in range(2)]

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """See Recorder. Waits for the device. Raises RuntimeError, after which nothing more must be recorded.

        Until torch 2.13 the allocator then counts a capture as under way (https://github.com/pytorch/pytorch/pull/180395).
        """
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # so that what is reserved now is what was, and what comes is the graph's
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        with (
            first_error(),
            torch.cuda.device(self._device),
            torch.cuda.stream(
                torch.cuda.current_stream(self._device)
            ),  # torch does not come back from a failed capture
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            body()
        self.num_bytes += torch.cuda.memory_reserved(self._device) - before
        return graph.replay

    def read(self, tokens: Tensor) -> Callable[[], list[int]]:
        """See Recorder. Two reads may be on their way at a time."""
        self._landing.reverse()
        host = self._landing[0][: len(tokens)]
        host.copy_(tokens, non_blocking=True)
        arrived = torch.cuda.current_stream(self._device).record_event()

        def wait() -> list[int]:
            arrived.synchronize()
            ids: list[int] = host.tolist()
            return ids

        return wait


@contextmanager
def first_error() -> Iterator[None]:
    """Raises the RuntimeError that came first: a capture that fails does so again as it ends, and hides why."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, RuntimeError):
            raise error.__context__ from None
        raise
