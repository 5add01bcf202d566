"""What this machine says of itself and this process: the memory left, within the limits of control groups, and age."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """Where one version of control groups keeps a group's limit, usage and reclaimable page cache."""

    root: str
    limit: str
    usage: str
    reclaimable: str


_V1 = _Hierarchy("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Hierarchy("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes this process can still take: MemAvailable, or less where a control group limits it. `root` is for tests."""
    groups = (max(0, limit - used) for limit, used in _group_limits(root))
    return min((_machine_available(root), *groups))


def process_age_s() -> float | None:
    """Seconds since this process began, to a hundredth; None where the system does not tell."""
    told = _read(Path("/proc/self/stat"))
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if told is None or clock is None:
        return None
    began_ticks = int(told.rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(clock) - began_ticks / os.sysconf("SC_CLK_TCK"))


def _machine_available(root: Path) -> int:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(psutil.virtual_memory().available)


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, usage without what the kernel would give back) of every control group above this process."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, has_path, path = rest.partition(":")
        if has_path and (controllers == "" or "memory" in controllers.split(",")):
            hierarchy = _V2 if controllers == "" else _V1
            top = root / hierarchy.root
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):  # inside a container only the top may be visible
                if folder.is_relative_to(top):
                    yield from _limit(folder, hierarchy)


def _limit(folder: Path, hierarchy: _Hierarchy) -> Iterator[tuple[int, int]]:
    limit, usage = _read(folder / hierarchy.limit), _read(folder / hierarchy.usage)
    if limit is None or usage is None or not limit.strip().isdigit():  # "max" is no limit
        return
    reclaimable = 0
    for line in (_read(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == hierarchy.reclaimable:
            reclaimable = int(value)
    yield int(limit), max(0, int(usage) - reclaimable)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
