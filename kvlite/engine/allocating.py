"""What a refused allocation is for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvlite.errors import OutOfMemory


@contextmanager
def allocating() -> Iterator[None]:
    """Turn a refused allocation into OutOfMemory, with what to do."""
    advice = "the device is out of memory; give a smaller --kv-budget, --prefill-chunk or --batch-size, or --4bit"
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(advice) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(advice) from error
