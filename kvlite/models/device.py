"""The device a model runs on: the one that was named or the best there is, the memory left on it, and its threads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache

import torch

from kvlite.errors import UsageError
from kvlite.memory.host import available_bytes, usable_cores
from kvlite.record.measure import DESKTOP_BYTES, device_reading

OF_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that torch follows when it starts; where the user sets one, that is the answer."""


def pick_device(name: str, tell: Callable[[str], None] = lambda text: None) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU, and a GPU it passes over is told.

    A CUDA device becomes the current one, which is where Triton launches. Raises UsageError where it is not there, or
    is a GPU that this torch has no code for.
    """
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name, why = "cuda", _without_code(0)
            if why is not None:
                name = "cpu"
                tell(f"{why}; running on the CPU")
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}; give auto, cpu, cuda, cuda:N or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise UsageError(f"device {name!r} is not there; give --device auto or cpu")
    if device.type != "cuda":
        return device
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA device(s)")
    if (why := _without_code(device.index)) is not None:
        raise UsageError(f"{why}; give --device cpu")
    torch.cuda.set_device(device)
    return device


def _without_code(index: int) -> str | None:
    """The sentence that says so where this torch has no code for CUDA device `index`, else None.

    `sm_86` is machine code for 8.6 and later minors, `compute_90` is compiled on the spot for 9.0 and anything later.
    """
    here = torch.cuda.get_device_capability(index)
    built = re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(torch.cuda.get_arch_list()))
    for kind, major, minor in built:
        for_this = (int(major), int(minor))
        if for_this <= here and (kind == "compute" or for_this[0] == here[0]):
            return None
    if not built:  # a build that does not say, such as one for ROCm
        return None
    card = torch.cuda.get_device_name(index)
    return f"{card} has compute capability {here[0]}.{here[1]}, which this torch is not built for"


def free_bytes(device: torch.device) -> int:
    """Bytes of memory left: by the driver's word on CUDA, this machine's (or its cgroup's) elsewhere.

    A GPU that draws a desktop keeps some for it.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # blocks that torch keeps for nobody are free
        return max(0, int(torch.cuda.mem_get_info(device)[0]) - _of_the_desktop(device))
    return available_bytes()


@cache
def _of_the_desktop(device: torch.device) -> int:
    gpu = device_reading(str(torch.cuda.get_device_properties(device).uuid))
    return DESKTOP_BYTES if gpu is not None and gpu.is_display else 0


def set_threads(device: torch.device) -> None:
    """On the CPU, unless the user says otherwise, use no more threads than physical cores this process may keep busy.

    Two threads of one core share what multiplies matrices, and a thread over the quota of a control group is stopped in
    the middle of a product that all others wait for. torch counts cores where it is built with MKL, else processors,
    and does not know the quota.
    """
    if device.type != "cpu" or any(os.environ.get(name) for name in OF_THE_USER):
        return
    cores = usable_cores()
    if cores is not None and cores < torch.get_num_threads():
        torch.set_num_threads(cores)
