"""What the process, the machine and the GPU's driver say about memory. Loads no torch: its numbers are passed in."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from os import getpid
from pathlib import Path

_STATUS = Path("/proc/self/status")
_DISTRIBUTIONS = {
    "kvlite": "kvlite-llm",
    "torch": "torch",
    "transformers": "transformers",
    "bitsandbytes": "bitsandbytes",
    "triton": "triton",
}


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What the driver says of one GPU, in bytes; `self_bytes` is None where it cannot tell processes apart."""

    name: str
    driver: str
    total_bytes: int
    free_bytes: int
    self_bytes: int | None

    @property
    def other_processes_bytes(self) -> int | None:
        """What everyone else holds on the device."""
        if self.self_bytes is None:
            return None
        return max(0, self.total_bytes - self.free_bytes - self.self_bytes)


def rss_bytes() -> int:
    """Host memory this process holds now."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(psutil.Process().memory_info().rss)


def rss_peak_bytes() -> int:
    """The most host memory this process ever held.

    Linux's VmHWM comes first: getrusage starts from the peak of the shell that started the process.
    """
    try:
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ram_total_bytes() -> int:
    """The machine's memory."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(psutil.virtual_memory().total)


def device_reading(uuid: str | None = None) -> DeviceReading | None:
    """The GPU called `uuid` (bare, as torch gives it, or `GPU-…`), else the first; None when no driver answers."""
    try:
        import pynvml
    except ImportError:  # the package is not made for this system
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(0)
            if uuid is None
            else pynvml.nvmlDeviceGetHandleByUUID(uuid if "-" in uuid[:4] else f"GPU-{uuid}")
        )
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        own = [p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == getpid()]
        return DeviceReading(
            name=str(pynvml.nvmlDeviceGetName(handle)),
            driver=str(pynvml.nvmlSystemGetDriverVersion()),
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            self_bytes=int(own[0]) if own and own[0] is not None else None,  # a container hides process ids
        )
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def installed_versions() -> dict[str, str]:
    """Versions of what makes the numbers, from package metadata: nothing is imported."""
    found = {"python": sys.version.split()[0]}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found
