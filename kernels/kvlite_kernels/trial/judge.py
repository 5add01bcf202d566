"""The judge of a trial: how far from float64 kernels may be, measured by torch's own error, and which way is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

STEPS = 16
"""Times of each way that are taken."""

AT_ONCE = 20
"""Steps that a GPU makes in such a time: to wait for it takes about as long as one."""

FACTOR = 3.0
FLOORS = {torch.float32: (1e-5, 1e-4)}
HALF_FLOORS = (1e-3, 2e-2)
"""Relative error beside FACTOR times that of torch in the same dtype: root mean square over all, and the worst."""


class Fault(Exception):
    """Kernels are wrong; the message says which and how."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Let memory that nobody wrote be NaN, so that a kernel is seen that reads it or leaves a lane unwritten."""
    made = {name: getattr(torch, name) for name in ("empty", "empty_like")}

    def filled(make: Callable[..., Tensor], *given: Any, **options: Any) -> Tensor:
        tensor = make(*given, **options)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

    for name, make in made.items():
        setattr(torch, name, partial(filled, make))
    try:
        yield
    finally:
        for name, make in made.items():
            setattr(torch, name, make)


def require_close(name: str, got: Tensor, twin: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Raises Fault unless `got` is as near to `exact` as `twin`, torch's, but for how `dtype` rounds."""
    if got.shape != exact.shape:
        raise Fault(f"{name}: shape {tuple(got.shape)} for {tuple(exact.shape)}")
    if not bool(got.isfinite().all()):
        raise Fault(f"{name}: not a number where there is one")
    floors = FLOORS.get(dtype, HALF_FLOORS)
    for measure, floor in zip((_mean_error, _worst_error), floors, strict=True):
        error, allowed = measure(got, exact), FACTOR * measure(twin, exact) + floor
        if not error <= allowed:
            raise Fault(f"{name}: off by {error:.2g} where {allowed:.2g} is rounding")


def require_equal(name: str, got: Tensor, wanted: Tensor) -> None:
    """Raises Fault unless both are the same to the bit."""
    if not torch.equal(got, wanted):
        where = (got != wanted).nonzero()
        raise Fault(f"{name}: {len(where)} differ, the first at {where[0].tolist() if len(where) else 'its shape'}")


def require_repeatable(name: str, run: Callable[[], Sequence[Tensor]], repeats: int) -> None:
    """Raises Fault where `run` does not give the same bits `repeats` times."""
    first = [tensor.clone() for tensor in run()]
    for _ in range(repeats - 1):
        if not all(map(torch.equal, run(), first)):
            raise Fault(f"{name}: the same input gave other bits")


def gain(
    torchs: Callable[[], object],
    ours: Callable[[], object],
    device: torch.device,
    captures: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The time of torch's way divided by that of `ours`: medians of STEPS in turns, as graphs if it `captures`."""
    at_once = AT_ONCE if device.type == "cuda" else 1
    ways = [_captured(way, device) if captures else way for way in (torchs, ours)]
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(STEPS):
        for way, times in zip(ways, spent, strict=True):
            wait(device)
            start = clock()
            for _ in range(at_once):
                way()
            wait(device)
            times.append(clock() - start)
    return median(spent[0]) / median(spent[1])


def wait(device: torch.device) -> None:
    """Return once the device has done all it was given, or raise what went wrong there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _captured(way: Callable[[], object], device: torch.device) -> Callable[[], object]:
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(2):
            way()
    wait(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        way()
    return graph.replay


def _mean_error(value: Tensor, exact: Tensor) -> float:
    value, exact = value.double(), exact.double()
    return float((value - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp(min=1e-12))


def _worst_error(value: Tensor, exact: Tensor) -> float:
    value, exact = value.double(), exact.double()
    return float((value - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
