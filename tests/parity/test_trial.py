"""The trial finds every way in which kernels can be wrong, and takes what is right."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch

from kvlite_kernels.backend import TORCH, Backend
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.trial import judge
from kvlite_kernels.trial.process import run, triton_backend, triton_ops
from kvlite_kernels.trial.task import MODULES, Part, SlotsPart, Task
from tests.matrix import but_few
from tests.parity import doubles
from tests.parity.doubles import HALF, SAME, TWICE

NUMBERS, CODES = SlotsPart(0, 0, Statistic.MASS), SlotsPart(8, 8, Statistic.MASS, "max")
OTHERS = [SlotsPart(4, 4, None), SlotsPart(0, 0, Statistic.BELOW), SlotsPart(0, 0, Statistic.GUMBEL)]
OTHERS += [SlotsPart(6, 4, Statistic.MASS, is_heard=True), SlotsPart(0, 0, Statistic.MASS, "max", is_heard=True)]
OTHERS += [SlotsPart(0, 0, Statistic.MASS, "max", is_heard=True, has_bias=True)]


def task(*parts: Part, dtype: str = "float32", repeats: int = 3) -> Task:
    return Task("cpu", dtype, ((4, 2, 16, 8),), 32, 48, parts, keys=41, repeats=repeats)


def outcome(
    part: Part,
    backend: Backend = TORCH,
    ops: FusedOps = TORCH_OPS,
    clock: tuple[float, ...] = TWICE,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The result of the trial of one part."""
    told: list[dict[str, Any]] = []
    run(task(part, dtype=dtype), told.append, lambda *_: backend, lambda _: ops, partial(next, cycle(clock)))
    assert len(told) > 1 and all("at" in line for line in told[:-1])
    return told[-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("part", [NUMBERS, CODES, *OTHERS, MODULES], ids=str)
def test_torch_itself_is_right(part: Part, dtype: str) -> None:
    assert outcome(part, dtype=dtype) == {"part": 0, "fault": None, "gain": 2.0, "is_unable": False}


WRONG = {
    "1 % too small": (NUMBERS, doubles.Times099(), "attention of one query, plain: off by"),
    "sees free slots": (NUMBERS, doubles.SeesFreeSlots(), "attention of one query, plain: off by"),
    "sees free codes": (CODES, doubles.SeesFreeSlots(), "attention of one query, plain: off by"),
    "gives NaN": (NUMBERS, doubles.GivesNaN(), "attention of one query, plain: not a number"),
    "a bit that flips": (NUMBERS, doubles.FlipsABit(), "attention of one query, plain: the same input gave other bits"),
    "loses a statistic": (NUMBERS, doubles.LosesAStatistic(), "attention of one query, plain (statistic): off by"),
    "loses one below": (OTHERS[1], doubles.LosesAStatistic(), "of the keys have another number"),
    "forgets nothing": (NUMBERS, doubles.ForgetsNothing(), "window, soft cap and sink (statistic): off by"),
    "counts the first": (NUMBERS, doubles.CountsTheFirst(), "window, soft cap and sink (statistic): off by"),
    "reads row by row": (NUMBERS, doubles.ReadsRowByRow(), "window, soft cap and sink"),
    "hears less": (OTHERS[4], doubles.HearsLess(), "hearing, plain: off by"),
    "hears too much": (OTHERS[4], doubles.HearsBeyondAWindow(), "hearing, window, soft cap and sink: off by"),
    "the wrong victim": (NUMBERS, doubles.TakesTheYoungest(), "eviction (k): "),
    "forgets pins": (NUMBERS, doubles.ForgetsPins(), "eviction (k): "),
    "leaves a scale": (CODES, doubles.LeavesAScale(), "eviction (k_scale): "),
    "a code aside": (CODES, doubles.CodesAside(), "codes: 1 differ, the first at [0, 0, 0, 0]"),
    "a launch that fails": (NUMBERS, doubles.Raises(RuntimeError("no image\nmore")), "RuntimeError: no image"),
    "no compiler": (NUMBERS, doubles.Raises(OSError("cc: not found")), "OSError: cc: not found"),
    "memory": (
        NUMBERS,
        doubles.Raises(RuntimeError("CUDA error: out of memory\n")),
        "RuntimeError: CUDA error: out of",
    ),
    "no headers": (NUMBERS, doubles.Raises(CalledProcessError(1, "gcc")), "CalledProcessError: Command 'gcc'"),
    "a bug": (NUMBERS, doubles.Raises(AssertionError()), "AssertionError: "),
}

OF_THE_MACHINE = {"no compiler", "memory", "no headers"}


@pytest.mark.parametrize("name", WRONG)
def test_every_fault_is_found_and_named(name: str) -> None:
    part, double, said = WRONG[name]
    found = outcome(part, double)
    assert found["gain"] == 0.0 and said in found["fault"]
    assert found["is_unable"] == (name in OF_THE_MACHINE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("ops", "said"),
    [
        (doubles.WrongGate(), "gate silu: off by"),
        (doubles.WrongRotation(), "rotation: off by"),
        (doubles.WrongNorm(), "sum and norm: off by"),
    ],
)
def test_faults_of_modules_are_found_in_every_dtype(ops: FusedOps, said: str, dtype: str) -> None:
    assert outcome(MODULES, ops=ops, dtype=dtype)["fault"].startswith(said)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_per_cent_is_found_in_half_precision(dtype: str) -> None:
    assert "off by" in outcome(NUMBERS, doubles.Times099(), dtype=dtype)["fault"]


@pytest.mark.parametrize(("clock", "gain"), [(TWICE, 2.0), (SAME, 1.0), (HALF, 0.5)])
def test_the_gain_is_what_the_clock_says(clock: tuple[float, ...], gain: float) -> None:
    assert outcome(NUMBERS, clock=clock)["gain"] == outcome(MODULES, clock=clock)["gain"] == gain


def test_a_gpu_makes_many_steps_between_two_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "wait", lambda device: None)
    made = [0, 0]
    ways = [partial(_count, made, number) for number in range(2)]
    judge.gain(ways[0], ways[1], torch.device("cuda"), captures=False, clock=partial(next, cycle(TWICE)))
    assert made == [judge.STEPS * judge.AT_ONCE] * 2


def _count(made: list[int], number: int) -> None:
    made[number] += 1


def test_memory_that_nobody_wrote_is_no_number() -> None:
    given = torch.zeros(3)
    with judge.poisoned():
        assert torch.empty(3).isnan().all() and torch.empty_like(given).isnan().all()
    assert given.isfinite().all() and "poisoned" not in repr(torch.empty_like)


def test_parts_are_judged_one_by_one() -> None:
    told: list[dict[str, Any]] = []
    run(task(MODULES, NUMBERS, CODES), told.append, lambda *_: doubles.CodesAside(), lambda _: TORCH_OPS)
    ends = [line for line in told if "part" in line]
    assert [line["part"] for line in ends] == [0, 1, 2]
    assert [line["fault"] is None for line in ends] == [True, True, False]


def test_a_task_comes_through_json_as_it_was() -> None:
    given = task(MODULES, NUMBERS, *OTHERS)
    assert Task.read(given.text()) == given


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of what lies in free slots, which is not used
@pytest.mark.parametrize("part", but_few([NUMBERS, CODES, *OTHERS, MODULES], NUMBERS), ids=str)
def test_the_triton_kernels_pass_in_the_interpreter(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "STEPS", 1)
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs triton, interpreting")
    told: list[dict[str, Any]] = []
    with torch.inference_mode():
        run(task(part, repeats=1), told.append, triton_backend, triton_ops)
    assert told[-1]["fault"] is None and told[-1]["gain"] > 0
