"""Free memory as a machine and its control groups tell it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvlite.memory.host import available_bytes, process_age_s, usable_cores

MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1000 kB\nMemAvailable:   8000000 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_the_kernel_calls_available_counts(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, {})) == 8_000_000 * 1024


def test_a_version_2_group_limits_it_and_its_page_cache_is_given_back(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "600\n",
        "sys/fs/cgroup/a/memory.max": "1000\n",
        "sys/fs/cgroup/a/memory.current": "700\n",
        "sys/fs/cgroup/a/memory.stat": "anon 500\ninactive_file 200\n",
    }
    assert available_bytes(machine(tmp_path, files)) == 500


def test_a_version_1_group_limits_it_where_only_the_top_is_visible(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "8:cpu:/x\n4:memory:/docker/0123\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
    }
    assert available_bytes(machine(tmp_path, files)) == 600


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "1200\n",
    }
    assert available_bytes(machine(tmp_path, files)) == 0


@pytest.mark.parametrize("text", ["", "nonsense\n", "1:memory\n", "::\n", "0::/../../etc\n"])
def test_a_strange_group_file_is_passed_over(tmp_path: Path, text: str) -> None:
    assert available_bytes(machine(tmp_path, {"proc/self/cgroup": text})) == 8_000_000 * 1024


def test_this_machine_has_some() -> None:
    assert available_bytes() > 0


def test_a_process_ages_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    age_s = process_age_s()
    assert age_s is not None and 0 < age_s < time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr("kvlite.memory.host._read", lambda path: None)
    assert process_age_s() is None


def siblings(*pairs: str) -> dict[str, str]:
    """Two hardware threads for each core, as the kernel lists them."""
    listed = [(cpu, pair) for pair in pairs for cpu in pair.split(",")]
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": pair + "\n" for cpu, pair in listed}


def test_two_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    root = machine(tmp_path, siblings("0,4", "1,5", "2,6", "3,7"))
    assert usable_cores(range(8), root) == 4
    assert usable_cores([0, 4, 5], root) == 2


def test_without_a_topology_every_processor_is_a_core(tmp_path: Path) -> None:
    assert usable_cores([0, 1, 2], machine(tmp_path, {})) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000", 2), ("max 100000", 4), ("50000 100000", 1), ("900000 100000", 4), ("", 4)]
)
def test_a_version_2_quota_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": quota + "\n"}
    assert usable_cores(range(4), machine(tmp_path, files)) == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 4)])
def test_a_version_1_quota_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/0123\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota + "\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert usable_cores(range(4), machine(tmp_path, files)) == cores
