"""Out of memory, as an error with advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvlite.errors import OutOfMemory


def is_refused(error: BaseException) -> bool:
    """True where `error` is a refused allocation; the CPU's allocator says so in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def allocating() -> Iterator[None]:
    """Turn a refused allocation into OutOfMemory, with what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_refused(error):
            raise
        raise OutOfMemory(
            "the device is out of memory; give a smaller --kv-budget, --prefill-chunk or --batch-size, or --4bit"
        ) from error
