"""The device a model runs on: the one that was named or the best there is, the memory left on it, and its threads."""

from __future__ import annotations

import os

import torch

from kvlite.errors import UsageError
from kvlite.memory.host import available_bytes, usable_cores

OF_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that torch follows when it starts; where the user sets one, that is the answer."""


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU. Raises UsageError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}; give auto, cpu, cuda, cuda:N or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise UsageError(f"device {name!r} is not there; give --device auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA device(s)")
    return torch.device(device.type, device.index or 0) if device.type == "cuda" else device


def free_bytes(device: torch.device) -> int:
    """Bytes of memory left: by the driver's word on CUDA, this machine's (or its cgroup's) elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


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
