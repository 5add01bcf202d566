"""What the host says of memory, held against what it must be."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from kvlite.record.measure import (
    DISTRIBUTIONS,
    DeviceReading,
    device_reading,
    ram_total_bytes,
    rss_peak_bytes,
    versions,
)

MB = 10**6


def test_the_peak_is_at_least_what_is_held_and_both_fit_the_machine() -> None:
    held = psutil.Process().memory_info().rss
    assert 5 * MB < held <= rss_peak_bytes() + MB  # the kernel counts both lazily
    assert rss_peak_bytes() < ram_total_bytes()


def test_the_peak_remembers_what_was_freed() -> None:
    script = (
        "import psutil\n"
        "from kvlite.record.measure import rss_peak_bytes\n"
        "block = bytearray(b'x') * 80_000_000\n"
        "del block\n"
        "print(rss_peak_bytes() - psutil.Process().memory_info().rss)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 60 * MB


def test_versions_come_without_importing_anything() -> None:
    assert versions()["python"] == sys.version.split()[0]
    assert {"kvlite", "torch"} < set(versions()) <= {"python", *DISTRIBUTIONS}


def test_a_device_nobody_has_gives_no_reading() -> None:
    assert device_reading("GPU-00000000-0000-0000-0000-000000000000") is None


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An NVML that knows one GPU, two processes on it, and whether it was left open."""
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not made for this system")
    state = SimpleNamespace(is_open=False, asked=None, processes=[(os.getpid(), 50), (1, 7)], display=0)

    def handle(asked: object) -> object:
        if asked not in (0, 1, "MIG-7f"):
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
        state.asked = asked
        return asked

    fakes = {
        "nvmlInit": lambda: setattr(state, "is_open", True),
        "nvmlShutdown": lambda: setattr(state, "is_open", False),
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetHandleByUUID": handle,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetUUID": lambda index: ("GPU-1a2b-3c", "GPU-4d5e-6f")[index],
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=100, free=30, used=70),
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [
            SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in state.processes
        ],
        "nvmlDeviceGetName": lambda _: "GPU of a test",
        "nvmlSystemGetDriverVersion": lambda: "570",
        "nvmlDeviceGetDisplayActive": lambda _: state.display,
    }
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, fake in fakes.items():
        monkeypatch.setattr(nvml, name, fake)
    return state


@pytest.mark.parametrize(
    ("device", "asked"), [(0, 0), (1, 1), ("1a2b-3c", 0), ("GPU-4d5e-6f", 1), ("GPU-4d", 1), ("MIG-7f", "MIG-7f")]
)
def test_a_device_is_read_by_number_or_uuid_and_closed_again(
    driver: SimpleNamespace, device: int | str, asked: object
) -> None:
    assert device_reading(device) == DeviceReading("GPU of a test", "570", 100, 30, 50)
    assert (driver.asked, driver.is_open) == (asked, False)


def test_a_desktop_keeps_memory_of_the_card_that_draws_it(driver: SimpleNamespace) -> None:
    driver.display = 1
    reading = device_reading()
    assert reading is not None and reading.is_display and reading.usable_bytes == 0
    roomy = replace(reading, free_bytes=3 * 2**30)
    assert (roomy.usable_bytes, replace(roomy, is_display=False).usable_bytes) == (2 * 2**30, 3 * 2**30)


def test_a_card_that_cannot_have_a_display_has_none(driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def refuse(_: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetDisplayActive", refuse)
    reading = device_reading()
    assert reading is not None and not reading.is_display


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        ("0,1", (0, 1)),
        ("1,0", (1, 0)),
        ("1", (1, None)),
        ("GPU-4d5e-6f, GPU-1a", (1, 0)),
        ("MIG-7f", ("MIG-7f", None)),
        ("0,-1,1", (0, None)),
        ("-1", (None, None)),
        ("", (None, None)),
        ("7", (None, None)),
    ],
)
def test_the_devices_are_those_that_cuda_shows_this_process(
    driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str, asked: tuple[object, object]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for index, expected in enumerate(asked):
        driver.asked = None
        assert (device_reading(index) is None) is (expected is None)
        assert driver.asked == expected


@pytest.mark.parametrize("processes", [[(1, 7)], [(os.getpid(), None)]])
def test_a_container_hides_what_the_process_holds(
    driver: SimpleNamespace, processes: list[tuple[int, int | None]]
) -> None:
    driver.processes = processes
    reading = device_reading()
    assert reading is not None
    assert reading.self_bytes is None


def test_what_others_hold_is_unknown_where_processes_cannot_be_told_apart() -> None:
    assert DeviceReading("x", "1", 100, 30, None).other_processes_bytes is None
    assert DeviceReading("x", "1", 100, 30, 50).other_processes_bytes == 20
