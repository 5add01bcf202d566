"""Memory and cores that this process may use, within the limits of control groups, and the age of the process."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes this process can still take: MemAvailable, or less where a control group limits it. `root` is for tests."""
    left = [_machine_available(root)]
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    for limit, usage, stat in _groups(root, "memory", v1, ("memory.max", "memory.current", "memory.stat")):
        if limit.strip().isdigit() and usage:  # "max" is no limit
            reclaimable = _entry(stat, "total_inactive_file") or _entry(stat, "inactive_file") or 0
            left.append(max(0, int(limit) - max(0, int(usage) - int(reclaimable))))
    return min(left)


def process_age_s() -> float | None:
    """Seconds since this process began, to a hundredth; None where the system does not tell."""
    told = _read(Path("/proc/self/stat"))
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if told is None or clock is None:
        return None
    began_ticks = int(told.rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(clock) - began_ticks / os.sysconf("SC_CLK_TCK"))


def usable_cores(cpus: Sequence[int] | None = None, root: Path = Path("/")) -> int | None:
    """Physical cores that this process may keep busy: those of `cpus`, its affinity, or fewer by a group's quota.

    None where the system does not tell (it is not Linux). Both arguments are for tests.
    """
    if cpus is None:
        if not hasattr(os, "sched_getaffinity"):
            return None
        cpus = sorted(os.sched_getaffinity(0))
    folder = root / "sys/devices/system/cpu"
    siblings = {_read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    cores = [len(siblings)]
    for texts in _groups(root, "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"), ("cpu.max",)):
        words = " ".join(texts).split()  # microseconds of processor time, per period in microseconds
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):  # "max" and -1 are no limit
            cores.append(int(words[0]) // int(words[1]))
    return max(1, min(cores))


def _machine_available(root: Path) -> int:
    kilobytes = _entry(_read(root / "proc/meminfo") or "", "MemAvailable")
    if kilobytes is not None:
        return int(kilobytes) * 1024
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(psutil.virtual_memory().available)


def _groups(root: Path, controller: str, v1: Sequence[str], v2: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of the files `v1` or `v2`, by its version, of every control group above this process."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, has_path, path = rest.partition(":")
        if has_path and (controllers == "" or controller in controllers.split(",")):
            top = root / "sys/fs/cgroup" / (controllers and controller)
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):  # inside a container only the top may be visible
                if folder.is_relative_to(top):
                    yield tuple(_read(folder / name) or "" for name in (v1 if controllers else v2))


def _entry(table: str, key: str) -> str | None:
    """The value of `key` in lines of keys and values; None where it is not there."""
    found = re.search(rf"^{key}:?\s+(\d+)", table, re.MULTILINE)
    return found and found[1]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
