"""The limits of a device, measured in the run that is compared with them: bytes copied, products computed."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

_REPEATS = 5
_COPY_BYTES = {"cuda": 2**30}
_COPY_BYTES_ELSEWHERE = 2**28  # several times any processor's cache
_SIDE = {"cuda": 8192}
_SIDE_ELSEWHERE = 768


@dataclass(frozen=True, slots=True)
class Ceilings:
    """`copy_bytes_s` counts what a copy of `copied_bytes` reads and what it writes; `flop_s` is of square products."""

    copy_bytes_s: float
    copied_bytes: int
    flop_s: float
    side: int
    dtype: str


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Copy bytes and multiply square matrices in `dtype`, medians of a few; sizes follow from the device."""
    copied_bytes = _COPY_BYTES.get(device.type, _COPY_BYTES_ELSEWHERE)
    if device.type == "cuda":
        copied_bytes = min(copied_bytes, torch.cuda.mem_get_info(device)[0] // 8)
    side = _SIDE.get(device.type, _SIDE_ELSEWHERE)
    copy_s, product_s = _copy_s(copied_bytes, device), _product_s(side, device, dtype)
    name = str(dtype).removeprefix("torch.")
    return Ceilings(2 * copied_bytes / copy_s, copied_bytes, 2 * side**3 / product_s, side, name)


def device_name(device: torch.device) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _copy_s(num_bytes: int, device: torch.device) -> float:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _median_s(lambda: target.copy_(source), device)


def _product_s(side: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.randn(side, side, device=device, dtype=dtype)
    product = torch.empty_like(left)
    return _median_s(lambda: torch.mm(left, left, out=product), device)


def _median_s(work: Callable[[], object], device: torch.device) -> float:
    """The median seconds of a few runs of `work`, each waited for, after two that warm up."""
    timings = []
    for number in range(_REPEATS + 2):
        start = time.perf_counter()
        work()
        synchronize(device)
        if number > 1:
            timings.append(time.perf_counter() - start)
    return median(timings)
