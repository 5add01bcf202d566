"""Trials of kernels in a process of their own: what the process does, what is kept, and what is read of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvlite.memory.shape import ModelShape
from kvlite.models import kernel_trial
from kvlite.models.kernel_trial import KernelTrials, TrialProcess, TrialSetting, may_try
from kvlite.record.trials import Trial, Trials
from kvlite_kernels import choice
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.trial.task import MODULES, Part, SlotsPart, Task
from tests.cache.driving import attention_layer, model_shape
from tests.matrix import but_few

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]
NUMBERS, CODES = SlotsPart(0, 0, Statistic.MASS), SlotsPart(8, 8, Statistic.MASS)
SHAPE = model_shape(attention_layer(2, 8))


@pytest.fixture(autouse=True)
def can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing speaks against Triton here, and a process finds the tests."""
    monkeypatch.setattr(kernel_trial, "obstacle", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))


@pytest.fixture
def store(tmp_path: Path) -> Trials:
    return Trials(tmp_path / "trials")


def trials(
    store: Trials, name: str = "right", stall_s: float = 60.0, shape: ModelShape = SHAPE, **options: Any
) -> KernelTrials:
    setting = TrialSetting((sys.executable, "-m", "tests.parity.doubles", name), stall_s)
    return KernelTrials(shape, CPU, store, setting=setting, **options)


def never(*_: object, **__: object) -> object:
    raise AssertionError("tried again")


def test_what_is_right_is_tried_once_and_known_to_the_next_start(
    store: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    first = trials(store, say=told.append)
    first.start([MODULES, NUMBERS])
    assert {trial.state for _, trial in store.known()} == {"running"}  # before anything ran
    assert [first.finding(part).is_taken for part in (NUMBERS, MODULES)] == [True, True]
    assert str(first.finding(MODULES)) == "right, 2.00x as fast as torch"
    assert told == ["trying Triton's kernels on this device, once; other starts will know"]
    monkeypatch.setattr(kernel_trial, "TrialProcess", never)
    again = trials(store, say=told.append)
    again.start([MODULES, NUMBERS])
    assert again.finding(NUMBERS).is_taken and len(told) == 1
    assert [what for what, _ in again.outcomes()] == ["modules", "slots of numbers, mass by mean"]


FAULTS = {
    "wrong": "wrong: attention of one query, plain: off by 0.01 where",
    "abort": "wrong: the trial ended by signal 6 at attention of one query, plain, 8 channels",
    "segfault": "wrong: the trial ended by signal 11 at attention of one query, plain, 8 channels",
    "exit": "wrong: the trial ended with exit code 7 at attention of one query, plain, 8 channels: a driver says why",
    "hang": "no answer in time from attention of one query, plain, 8 channels",
    "slower": "right, 0.50x as fast as torch, not worth it",
}


@pytest.mark.parametrize("name", but_few(FAULTS, "segfault"))
def test_a_process_that_fails_leaves_torch_and_the_reason(store: Trials, name: str) -> None:
    tried = trials(store, name, stall_s=2.0 if name == "hang" else 60.0)
    tried.start([NUMBERS, MODULES])
    found = tried.finding(NUMBERS)
    assert not found.is_taken and FAULTS[name] in str(found)
    assert tried.finding(MODULES).is_taken == (name != "slower")  # it is tried on, in another process where one died
    assert trials(store, "right").finding(NUMBERS).is_taken == (name == "hang")  # which may be a slow machine


@pytest.mark.parametrize("name", ["interrupted", "killed"])
def test_a_process_that_a_user_or_the_system_ends_says_nothing_of_kernels(store: Trials, name: str) -> None:
    tried = trials(store, name)
    assert not tried.finding(NUMBERS).is_taken and "ended by signal" in str(tried.finding(NUMBERS))
    assert store.known() == [] and trials(store).finding(NUMBERS).is_taken


@pytest.mark.parametrize(
    ("name", "said"), [("full", "OutOfMemoryError: CUDA out of memory"), ("unstarted", "ended with exit code 3 at its")]
)
def test_what_a_machine_lacks_says_nothing_of_kernels(store: Trials, name: str, said: str) -> None:
    tried = trials(store, name)
    assert not tried.finding(NUMBERS).is_taken and said in str(tried.finding(NUMBERS))
    assert store.known() == [] and trials(store).finding(NUMBERS).is_taken


def test_a_process_that_does_not_die_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_trial, "KILL_S", 0.1)
    sleeps = TrialSetting((sys.executable, "-c", "import time; time.sleep(600)"))
    tried = TrialProcess(Task("cpu", "float32", (), 8, 8, (NUMBERS,)), sleeps)
    with monkeypatch.context() as patched:
        patched.setattr(tried._process, "kill", lambda: None)  # as inside a driver
        tried.end()
    assert tried._process.poll() is None
    tried._process.kill()
    tried._process.wait()


def test_what_depends_on_something_else_is_tried_anew(store: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    known = trials(store)
    monkeypatch.setattr(kernel_trial, "kernels_stamp", lambda: "another")
    others = [trials(store)]
    monkeypatch.undo()
    others += [
        trials(store, shape=model_shape(attention_layer(2, 16))),
        trials(store, captures=True),
    ]
    for name in ("torch", "triton"):
        monkeypatch.setattr(kernel_trial, "versions", lambda name=name: {name: "0"})
        others.append(trials(store))
    abouts = [json.dumps(one.about(part)) for one in (known, *others) for part in (NUMBERS, CODES, MODULES)]
    assert len(set(abouts)) == len(abouts)


class Right:
    """A process in which all is right."""

    def __init__(self, task: Task, setting: TrialSetting) -> None:
        self.left = list(task.parts)

    def next_outcome(self) -> tuple[Part, Trial]:
        return self.left.pop(0), Trial("right", gain=2.0)


def ended_process() -> int:
    """The number of a process that is gone."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


def test_a_trial_whose_start_was_killed_is_begun_once_more(store: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_trial, "TrialProcess", Right)
    one = trials(store)
    store.keep(one.about(NUMBERS), Trial("running", process=ended_process()))
    one.start([NUMBERS])
    assert [(trial.state, trial.attempt) for _, trial in store.known()] == [("running", 2)]
    assert one.finding(NUMBERS).is_taken and trials(store).finding(NUMBERS).is_taken


class Hangs(Right):
    """A process that says nothing, and is killed."""

    def next_outcome(self) -> tuple[Part, Trial]:
        return self.left.pop(0), Trial("running", "no answer in time from x", process=ended_process())


def test_what_did_not_answer_in_time_is_tried_once_more(store: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_trial, "TrialProcess", Hangs)
    for attempt in (1, 2):
        found = trials(store).finding(NUMBERS)
        assert (str(found), found.attempt, found.is_taken) == ("no answer in time from x", attempt, False)
    monkeypatch.setattr(kernel_trial, "TrialProcess", never)
    assert str(trials(store).finding(NUMBERS)) == "no answer in time from x"


@pytest.mark.parametrize("running", [Trial("running", attempt=2), Trial("running", when="2001-02-03T04:05:06+00:00")])
def test_a_trial_that_took_the_machine_along_or_never_ends_is_not_begun_again(
    store: Trials, monkeypatch: pytest.MonkeyPatch, running: Trial
) -> None:
    one = trials(store)
    store.keep(one.about(NUMBERS), replace(running, process=ended_process()))
    monkeypatch.setattr(kernel_trial, "TrialProcess", never)
    found = one.finding(NUMBERS)
    assert not found.is_taken and str(found) == "a trial of them never came to its end"


def test_what_another_start_tries_is_left_to_it(store: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trials(store)
    store.keep(one.about(NUMBERS), Trial("running", process=os.getppid()))
    monkeypatch.setattr(kernel_trial, "TrialProcess", never)
    assert str(one.finding(NUMBERS)) == "another process is trying them"


def test_again_tries_what_is_known(store: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_trial, "TrialProcess", Right)
    store.keep(trials(store).about(MODULES), Trial("wrong", "once"))
    assert not trials(store).finding(MODULES).is_taken
    assert trials(Trials(store.folder, again=True)).finding(MODULES).is_taken
    assert trials(store).finding(MODULES).is_taken


def test_what_goes_wrong_later_is_known_to_later_starts(store: Trials) -> None:
    store.keep(trials(store).about(NUMBERS), Trial("right", gain=2.0))
    one = trials(store)
    assert one.finding(NUMBERS).is_taken
    one.condemn(NUMBERS, "in mid-answer: a launch failed")
    assert not one.finding(NUMBERS).is_taken
    assert str(trials(store).finding(NUMBERS)) == "wrong: in mid-answer: a launch failed"


def test_a_start_that_is_broken_off_leaves_nothing(store: Trials) -> None:
    one = trials(store, "hang")
    one.start([NUMBERS, MODULES])
    one.close()
    assert store.known() == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 1}', "maybe"])
def test_a_damaged_trial_counts_for_nothing(store: Trials, damage: bytes | str) -> None:
    about = trials(store).about(NUMBERS)
    store.keep(about, Trial("right", gain=2.0))
    (file,) = store.folder.iterdir()
    if isinstance(damage, str):
        told = json.loads(file.read_bytes())
        told["verdict"]["state"] = damage
        damage = json.dumps(told).encode()
    file.write_bytes(damage)
    assert store.find(about) is None


def test_what_cannot_run_is_not_tried(store: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_trial, "obstacle", lambda *_: "there is no compiler")
    monkeypatch.setattr(kernel_trial, "TrialProcess", never)
    assert str(trials(store).finding(NUMBERS)) == "there is no compiler"
    assert store.known() == []


def test_a_card_that_the_weights_fill_is_left_alone(store: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    store.keep(trials(store).about(MODULES), Trial("right", gain=2.0))
    monkeypatch.setattr(kernel_trial, "TrialProcess", never)
    one = trials(store, likely=[MODULES, NUMBERS])
    one.begin(room=2**30)
    assert str(one.finding(NUMBERS)) == "the weights leave too little memory to try Triton's kernels"
    assert one.finding(MODULES).is_taken and len(store.known()) == 1  # known from before


def test_a_gpu_alone_is_tried_and_only_where_nothing_was_asked_for() -> None:
    gpu = torch.device("cuda", 0)
    asked = [may_try(kernels, gpu) for kernels in ("auto", "torch", "triton")]
    assert asked == [True, False, False] and not may_try("auto", CPU)


@pytest.mark.parametrize(
    ("version", "has_compiler", "said"),
    [
        ("3.3.1", True, "the Triton kernels need triton 3.4 or later, and this is 3.3.1"),
        ("3.10.0", False, "Triton needs a C compiler (gcc or clang), and none is installed"),
        ("3.10.0", None, "Triton needs Python's header files (python3-dev), and they are not installed"),
        ("3.10.0", True, "the Triton kernels do not take bfloat16 before compute capability 8.0 (float16)"),
    ],
)
def test_what_speaks_against_triton_is_said_before_anything_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, has_compiler: bool | None, said: str
) -> None:
    triton = pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
    from kvlite_kernels.triton_set.tiles import Processor

    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(choice, "which", lambda name: None if has_compiler is False else name)
    (tmp_path / "Python.h").touch()
    headers = tmp_path / "none" if has_compiler is None else tmp_path
    monkeypatch.setattr(choice, "get_paths", lambda: {"include": str(headers)})
    monkeypatch.setattr(choice, "processor_of", lambda device: Processor(75, 40))
    layer = choice.LayerSizes(4, 2, 41, 16, 16)
    assert choice.obstacle(torch.device("cuda", 0), [layer], [torch.bfloat16]) == said
