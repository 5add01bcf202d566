"""Zeros that take no memory of the machine until they are written to."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

_SMALL = 1 << 20
_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of `shape`, in a storage of their own. Raises MemoryError where the system refuses them.

    On a CPU the system gives pages as they are first written: torch would write them all at once.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes < _SMALL or not _FLAGS:
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, num_bytes, flags=_FLAGS)
    except OSError as error:
        raise MemoryError(f"can't allocate memory: {num_bytes} bytes of slots") from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)
