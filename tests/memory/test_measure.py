"""What the host says of memory, held against what it must be."""

from __future__ import annotations

import subprocess
import sys

from kvlite.memory.measure import (
    DeviceReading,
    device_reading,
    installed_versions,
    ram_total_bytes,
    rss_bytes,
    rss_peak_bytes,
)

MB = 10**6


def test_the_peak_is_at_least_what_is_held_and_both_fit_the_machine() -> None:
    held = rss_bytes()
    assert 5 * MB < held <= rss_peak_bytes() + MB  # the kernel counts both lazily
    assert rss_peak_bytes() < ram_total_bytes()


def test_the_peak_remembers_what_was_freed() -> None:
    script = (
        "from kvlite.memory.measure import rss_bytes, rss_peak_bytes\n"
        "block = bytearray(b'x') * 80_000_000\n"
        "del block\n"
        "print(rss_peak_bytes() - rss_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 60 * MB


def test_versions_come_without_importing_anything() -> None:
    assert installed_versions()["python"] == sys.version.split()[0]
    assert all(installed_versions().values())


def test_a_device_nobody_has_gives_no_reading() -> None:
    assert device_reading("GPU-00000000-0000-0000-0000-000000000000") is None


def test_what_others_hold_is_unknown_where_processes_cannot_be_told_apart() -> None:
    assert DeviceReading("x", "1", 100, 30, None).other_processes_bytes is None
    assert DeviceReading("x", "1", 100, 30, 50).other_processes_bytes == 20
