"""Memory as the process, the machine and the GPU's driver report it, and installed versions. Loads no torch."""

from __future__ import annotations

import os
import platform
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_NAMED_ALIKE = ("torch", "transformers", "huggingface-hub", "safetensors", "bitsandbytes", "triton")
DISTRIBUTIONS = {
    "kvlite": ("kvlite-llm",),
    **{name: (name,) for name in _NAMED_ALIKE},
    "cuda": ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"),
}
"""The packages whose versions are told, each under the name of any of its distributions."""


DESKTOP_BYTES = 2**30
"""Free memory that is left to the desktop which a GPU draws."""


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One GPU as its driver reports it, in bytes; `self_bytes` is None where it cannot tell processes apart.

    `is_display`: it draws a desktop.
    """

    name: str
    driver: str
    total_bytes: int
    free_bytes: int
    self_bytes: int | None
    is_display: bool = False

    @property
    def usable_bytes(self) -> int:
        """Bytes that are free, less what windows that are opened later will want."""
        return max(0, self.free_bytes - self.is_display * DESKTOP_BYTES)

    @property
    def other_processes_bytes(self) -> int | None:
        """Bytes that all other processes hold on the device."""
        if self.self_bytes is None:
            return None
        return max(0, self.total_bytes - self.free_bytes - self.self_bytes)


def rss_peak_bytes() -> int:
    """The most host memory this process ever held.

    Linux's VmHWM comes first: getrusage starts from the peak of the shell that started the process.
    """
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ram_total_bytes() -> int:
    """The machine's memory."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(psutil.virtual_memory().total)


def device_reading(device: int | str = 0) -> DeviceReading | None:
    """Ask the driver about a GPU: N of `cuda:N`, or a UUID (bare, as torch gives it, or `GPU-…`).

    None where no driver answers, or the GPU is not there or hidden by CUDA_VISIBLE_DEVICES.
    """
    try:
        import pynvml
    except ImportError:  # the package is not made for this system
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        name = _visible_name(device) if isinstance(device, int) else device if "-" in device[:4] else f"GPU-{device}"
        if name is None:
            return None
        handle = _handle(pynvml, name)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        own = [p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == os.getpid()]
        return DeviceReading(
            name=str(pynvml.nvmlDeviceGetName(handle)),
            driver=str(pynvml.nvmlSystemGetDriverVersion()),
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            self_bytes=int(own[0]) if own and own[0] is not None else None,  # a container hides process ids
            is_display=_is_display(pynvml, handle),
        )
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _is_display(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetDisplayActive(handle))
    except nvml.NVMLError:  # a card without outputs may not know the question
        return False


def _visible_name(index: int) -> str | None:
    """The name of device `index` in CUDA_VISIBLE_DEVICES: a number or a UUID; None where it hides the device."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return str(index)
    names = [name.strip() for name in listed.split(",")]
    visible = list(takewhile(lambda name: name and not name.startswith("-"), names))  # CUDA stops at the first bad name
    return visible[index] if index < len(visible) else None


def _handle(nvml: Any, name: str) -> Any:
    """NVML's handle of the GPU with this number or UUID; a UUID may be cut short, as CUDA allows. Raises NVMLError."""
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if str(nvml.nvmlDeviceGetUUID(handle)).startswith(name):
            return handle
    return nvml.nvmlDeviceGetHandleByUUID(name)  # a slice of a GPU (MIG)


def versions() -> dict[str, str]:
    """Versions of python, kvlite and the dependencies that are installed. From metadata: imports nothing."""
    found = {"python": platform.python_version()}
    for name, distributions in DISTRIBUTIONS.items():
        for distribution in distributions:
            with suppress(PackageNotFoundError):
                found.setdefault(name, version(distribution))
    return found
