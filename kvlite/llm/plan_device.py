"""The device a model would run on, found without torch, for plans and dry runs."""

from __future__ import annotations

from dataclasses import dataclass

from kvlite.errors import UsageError
from kvlite.memory.format import parse_size
from kvlite.memory.host import available_bytes
from kvlite.memory.prediction import DeviceKind


@dataclass(frozen=True, slots=True)
class PlanDevice:
    """The device's kind and name, and the bytes that are free there before weights are loaded."""

    kind: DeviceKind
    name: str
    free_bytes: int


def find_device(device: str, vram: str | None = None) -> PlanDevice:
    """The device called `device`, or a pretended GPU with `vram` free. Raises UsageError where it is not there."""
    from kvlite.record.measure import device_reading

    if vram is not None:
        size = parse_size(vram)
        if not size:
            raise UsageError(f"--vram {vram} is not a size; give for example 8GB or 8GiB")
        return PlanDevice("cuda", "a GPU", size)
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"unknown device '{device}'; give auto, cpu, cuda, cuda:N or mps")
    if kind in ("auto", "cuda"):
        gpu = device_reading(int(index or 0))
        if gpu is not None:
            return PlanDevice("cuda", gpu.name, gpu.free_bytes)
        if kind == "cuda":
            raise UsageError(f"--device {device}: no such GPU answers here; give --vram SIZE to pretend one")
    return PlanDevice("cpu", "this machine", available_bytes())
