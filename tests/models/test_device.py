"""Threads that torch is given for a model on the CPU, and memory that is left on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kvlite.engine.inputs import inputs
from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed
from kvlite.models import device
from kvlite.models.device import OF_THE_USER, free_bytes, set_threads
from kvlite.models.probe import dry_cache
from kvlite.record.measure import DESKTOP_BYTES, DeviceReading
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch has three threads, two cores are usable, and the user has said nothing."""
    for name in OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_model_on_the_cpu_takes_as_many_threads_as_cores() -> None:
    set_threads(CPU)
    assert torch.get_num_threads() == 2


def test_fewer_threads_than_cores_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: 8)
    set_threads(CPU)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", OF_THE_USER)
def test_what_the_user_sets_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    set_threads(CPU)
    assert torch.get_num_threads() == 3


def test_where_the_system_does_not_tell_torch_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: None)
    set_threads(CPU)
    assert torch.get_num_threads() == 3


def test_a_model_elsewhere_changes_nothing() -> None:
    set_threads(torch.device("cuda"))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("is_display", [True, False])
def test_a_gpu_that_draws_a_desktop_leaves_it_some_memory(monkeypatch: pytest.MonkeyPatch, is_display: bool) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empty"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: asked.append("ask") or (5 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1a"))
    monkeypatch.setattr(device, "device_reading", lambda _: DeviceReading("GPU", "1", 8, 5, None, is_display))
    device._of_the_desktop.cache_clear()
    assert free_bytes(torch.device("cuda", 0)) == 5 * 2**30 - is_display * DESKTOP_BYTES
    assert asked == ["empty", "ask"]  # blocks that nobody uses are free
    device._of_the_desktop.cache_clear()


def test_each_pass_runs_on_the_gpu_of_its_model_in_whatever_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    @contextmanager
    def noted(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", noted)
    loaded = replace(admitted(tiny_model("llama", {})), device=torch.device("cuda", 1))
    cache = dry_cache(replace(loaded, device=CPU), 8)
    step = cache.begin(slice(0, 1), torch.zeros(1, 1).int(), torch.zeros(1, 1).int(), (1,), None)
    loaded.forward(torch.tensor([[5]]), cache, step)
    assert entered == [torch.device("cuda", 1), "left"]


def test_a_step_is_one_copy_to_a_gpu_which_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[bool, bool]] = []
    make = torch.tensor

    def pinned(numbers: object, *, dtype: torch.dtype, pin_memory: bool) -> SimpleNamespace:
        def to(device: torch.device, *, non_blocking: bool) -> torch.Tensor:
            copies.append((pin_memory, non_blocking))
            return make(numbers, dtype=dtype)

        return SimpleNamespace(to=to)

    monkeypatch.setattr(torch, "tensor", pinned)
    row = Row(0, seen=7, rot=7)
    inputs(Feed(slice(0, 1), ((5,),), decodes=True), [row], torch.device("cuda", 0))
    assert copies == [(True, True)]
