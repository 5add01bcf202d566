"""The process that tries kernels: a task comes in on stdin, a line of JSON goes out for each thing tried.

`{"at": ...}` says what is tried next, so that whoever waits knows where it hung or died; `{"part": i, "fault": ...,
"gain": ..., "is_unable": ...}` ends the i-th part of the task; where it `is_unable`, the machine is at fault. An
illegal access poisons a process, and here it is this one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from subprocess import SubprocessError
from typing import Any

import torch

from kvlite_kernels.backend import Backend, LayerSizes
from kvlite_kernels.choice import choose_backend, choose_ops
from kvlite_kernels.fused_ops import FusedOps
from kvlite_kernels.trial.judge import Fault
from kvlite_kernels.trial.modules import OpsOf, try_modules
from kvlite_kernels.trial.slots import BackendOf, try_slots
from kvlite_kernels.trial.task import Task

OF_THE_MACHINE = ("out of memory", "STATUS_ALLOC_FAILED", "busy or unavailable", "uncorrectable ECC error")
"""Words of drivers and libraries in errors that any kernel could meet."""


def triton_backend(
    layers: Sequence[LayerSizes], rows: int, dtypes: Sequence[torch.dtype], device: torch.device
) -> Backend:
    """The kernels that are tried."""
    return choose_backend("triton", layers, rows, dtypes, device)


def triton_ops(device: torch.device) -> FusedOps:
    """The operations that are tried."""
    return choose_ops("triton", device)


def run(
    task: Task,
    tell: Callable[[dict[str, Any]], None],
    backend_of: BackendOf = triton_backend,
    ops_of: OpsOf = triton_ops,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Try every part of `task`, and tell what is tried and what came of it."""
    if task.place.type == "cuda":
        torch.cuda.set_device(task.place)

    def at(what: str) -> None:
        tell({"at": what})

    for index, part in enumerate(task.parts):
        fault, gain, is_unable = None, 0.0, False
        try:
            with torch.inference_mode():
                if isinstance(part, str):
                    gain = try_modules(task, ops_of(task.place), at, clock)
                else:
                    gain = try_slots(task, part, backend_of, at, clock)
        except Fault as error:
            fault = str(error)
        except Exception as error:  # whatever a compiler, a launcher or a driver raises
            fault = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            is_unable = _is_of_the_machine(error)
        tell({"part": index, "fault": fault, "gain": gain, "is_unable": is_unable})


def _is_of_the_machine(error: Exception) -> bool:
    """True where memory, a disk, a compiler or the device is not to be had, which says nothing about kernels."""
    is_refused = isinstance(error, MemoryError | OSError | SubprocessError | torch.OutOfMemoryError)
    return is_refused or any(words in str(error) for words in OF_THE_MACHINE)


def say(told: dict[str, Any]) -> None:
    """Write a line, at once."""
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(Task.read(sys.stdin.read()), say)
