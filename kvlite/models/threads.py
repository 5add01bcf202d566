"""How many threads a model on the CPU runs on: as many as there are physical cores that this process may keep busy.

Two threads of one core share what multiplies matrices, and a thread over the quota of a control group is stopped in the
middle of a product that all others wait for. torch counts cores where it is built with MKL, else processors, and does
not know the quota.
"""

from __future__ import annotations

import os

import torch

from kvlite.memory.host import usable_cores

OF_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that torch follows when it starts; where the user sets one, that is the answer."""


def set_threads(device: torch.device) -> None:
    """Let torch use no more threads than there are cores for them, if `device` is the CPU and nobody said otherwise."""
    if device.type != "cpu" or any(os.environ.get(name) for name in OF_THE_USER):
        return
    cores = usable_cores()
    if cores is not None and cores < torch.get_num_threads():
        torch.set_num_threads(cores)
