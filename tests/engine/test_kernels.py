"""Kernels that fail in mid-answer lose no token: torch reads anew what was said, and the user is told why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvlite.cache import cache as cache_module
from kvlite.cache.policy import load_policy
from kvlite.engine import kernels as engine_kernels
from kvlite.engine.decode_graphs import GraphRecorder
from kvlite.engine.kernels import KernelChoice, TriedKernels, part_of, unlike_torch
from kvlite.engine.request import Completion, Request, Sampling, Token
from kvlite.engine.verification import Verification
from kvlite.errors import NumericError, OutOfMemory
from kvlite.memory.format import slot_format
from kvlite.models import kernel_trial
from kvlite.models.fusing import fuse
from kvlite.models.kernel_trial import KernelTrials
from kvlite.models.loaded import LoadedModel
from kvlite.record.trials import Trial, Trials
from kvlite_kernels.backend import TORCH, Backend
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps
from kvlite_kernels.trial.task import Part
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few
from tests.parity.doubles import Times099


class Failing(Backend):
    """Torch's numbers under another name, until the calls of `attend` that are left have been made."""

    name = "triton"

    def __init__(self, left: int, harm: Callable[[Tensor], Tensor]) -> None:
        self.left, self.harm = left, harm

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        out, received = super().attend(*given)
        self.left -= 1
        return (self.harm(out), received) if self.left < 0 else (out, received)


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def harm(out: Tensor) -> Tensor:
        raise error

    return harm


class OutOfResources(Exception):
    """As Triton raises it, which is no RuntimeError."""

    __module__ = "triton.runtime.errors"


HARMS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda out: out * torch.nan, "numbers that are none"),
    "launch": (
        raising(RuntimeError("CUDA error: invalid argument\nmore")),
        "RuntimeError: CUDA error: invalid argument",
    ),
    "resources": (raising(OutOfResources("shared memory")), "OutOfResources: shared memory"),
    "compiler": (raising(OSError("cc: not found")), "OSError: cc: not found"),
}


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


def serve(monkeypatch: pytest.MonkeyPatch, double: Backend) -> None:
    """Let `double` compute where Triton is wanted."""
    monkeypatch.setattr(cache_module, "choose_backend", lambda wanted, *_: double if wanted == "triton" else TORCH)


def requests(rows: int = 2) -> list[Request]:
    return [Request(str(i), tuple(range(5, 25 + 9 * i)), max_tokens=12, pins=((1, 3),)) for i in range(rows)]


@pytest.mark.parametrize(
    ("name", "left"),
    but_few([(name, left) for name in HARMS for left in (1, 5, 17, 30)], ("NaN", 17), ("resources", 1)),
)
def test_an_answer_goes_on_in_torch_with_the_tokens_it_would_have_had(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, name: str, left: int
) -> None:
    harm, why = HARMS[name]
    expected = {key: done.ids for key, done in answers(make_engine(llama, rows=2), requests()).items()}
    serve(monkeypatch, Failing(left, harm))
    told: list[str] = []
    engine = make_engine(llama, rows=2, kernels="triton", warn=told.append)
    assert {key: done.ids for key, done in answers(engine, requests()).items()} == expected
    assert told == [f"Triton's kernels failed in mid-answer ({why}); torch goes on, and reads anew what was said"]
    assert engine.cache.backend.name == "torch"


@pytest.mark.parametrize("policy", but_few(["heavy-hitter", "replay", "window"], "heavy-hitter"))
def test_a_full_cache_is_filled_again_and_keeps_its_bound(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    serve(monkeypatch, Failing(60, HARMS["NaN"][0]))
    engine = make_engine(llama, "24tok", policy, kernels="triton")
    asked = [Request("a", tuple(range(5, 60)), max_tokens=40, row=0), Request("b", (9, 8, 7), max_tokens=4, row=0)]
    first, second = (answers(engine, [request])[request.id] for request in asked)
    assert (len(first.ids), len(second.ids), engine.cache.backend.name) == (40, 4, "torch")
    assert second.kv.tokens_seen == 55 + 40 + 3 + 3 and second.kv.tokens_kept == 24


def test_a_model_with_state_reads_that_anew_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    asked = [Request("a", tuple(range(5, 25)), max_tokens=12)]
    expected = answers(make_engine(loaded), asked)["a"].ids
    serve(monkeypatch, Failing(9, HARMS["NaN"][0]))
    assert answers(make_engine(loaded, kernels="triton"), asked)["a"].ids == expected


def test_graphs_over_kernels_that_fail_become_graphs_over_torch(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(make_engine(llama), requests(1))["0"].ids
    double = Failing(10**6, HARMS["NaN"][0])
    serve(monkeypatch, double)
    engine = make_engine(llama, kernels="triton", recorder=GraphRecorder())
    assert engine.step == "captured"
    events = []
    for event in engine.run(requests(1)):
        events.append(event)
        if isinstance(event, Token) and event.index == 4:
            double.left = 0
    assert isinstance(events[-1], Completion) and events[-1].ids == expected
    assert (engine.step, engine.cache.backend.name) == ("captured", "torch")


def test_modules_compute_in_torch_from_then_on(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, ops = admitted(tiny_model("llama", {})), FusedOps()
    module: Any = next(loaded.model.modules())
    module.ops = ops
    serve(monkeypatch, Failing(3, HARMS["launch"][0]))
    answers(make_engine(loaded, kernels="triton"), requests(1))
    assert module.ops is TORCH_OPS


def test_memory_that_is_refused_is_no_fault_of_kernels(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Failing(3, raising(RuntimeError("CUDA error: out of memory"))))
    with pytest.raises(OutOfMemory):
        answers(make_engine(llama, kernels="triton"), requests(1))


def test_a_device_that_the_kernels_took_along_is_said_in_one_line(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = raising(RuntimeError("CUDA error: an illegal memory access was encountered\nmore"))
    serve(monkeypatch, Failing(3, lost))
    engine = make_engine(llama, kernels="triton")
    monkeypatch.setattr(cache_module, "choose_backend", lambda *_: Failing(0, lost))
    with pytest.raises(NumericError, match=r"took the device along .*illegal memory access.*; run it again with"):
        answers(engine, requests(1))


class Known(KernelChoice):
    """A choice that notes what is condemned."""

    def __init__(self, name: str = "triton") -> None:
        super().__init__(name)
        self.condemned: list[tuple[str, str]] = []

    def condemn(self, parts: Sequence[Part], why: str) -> None:
        self.condemned += [(str(part), why) for part in parts]


def test_what_failed_is_condemned(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Failing(3, HARMS["NaN"][0]))
    known = Known()
    answers(make_engine(llama, kernels=known), requests(1))
    assert known.condemned == [("slots of numbers, mass by mean", "numbers that are none")]
    assert known.name == "torch"


def test_numbers_that_torch_does_not_compute_either_condemn_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model("llama", {}))
    serve(monkeypatch, Failing(10**6, HARMS["NaN"][0]))
    known, told = Known(), list[str]()
    engine = make_engine(loaded, kernels=known, warn=told.append)
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(torch.nan)
    assert isinstance(answers(engine, requests(1))["0"].error, NumericError)
    assert known.condemned == [] and told == [
        "the model computed no numbers on Triton's kernels, and none in torch, which goes on"
    ]


class FailingOps(FusedOps):
    """Torch's numbers under another name, until the calls of `gated` that are left have been made."""

    name = "triton"
    left = 10**6

    def gated(self, *given: Any) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("CUDA error: invalid argument")
        return super().gated(*given)


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_modules_that_fail_are_condemned_wherever_slots_are_and_no_token_is_lost(
    monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    expected = {
        key: done.ids for key, done in answers(make_engine(admitted(tiny_model("llama", {}))), requests(1)).items()
    }
    ops = FailingOps()
    loaded = fuse(admitted(tiny_model("llama", {})), ops)
    assert "mlp" in loaded.fused
    serve(monkeypatch, Failing(10**6, HARMS["NaN"][0]))
    known, told = Known(kernels), list[str]()
    engine = make_engine(loaded, kernels=known, warn=told.append)
    ops.left = 17
    assert {key: done.ids for key, done in answers(engine, requests(1)).items()} == expected
    why = "RuntimeError: CUDA error: invalid argument"
    slots = [("slots of numbers, mass by mean", why)] if kernels == "triton" else []
    assert known.condemned == [*slots, ("modules", why)] and why in told[0]


def test_modules_that_fail_at_drafted_tokens_lose_none(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Sampling(logit_bias=tuple((token, 100.0) for token in (5, 6, 7)))  # an answer that soon repeats itself
    asked = [Request("a", tuple(range(20, 30)), few, max_tokens=90)]
    expected = answers(make_engine(admitted(tiny_model("llama", {})), "200tok"), asked)["a"].ids
    ops, fail = FailingOps(), Verification.logits

    def logits(chunk: Verification, loaded: LoadedModel) -> Tensor:
        if chunk.width > 2:
            ops.left = 1
        return fail(chunk, loaded)

    monkeypatch.setattr(Verification, "logits", logits)
    known = Known("torch")
    engine = make_engine(fuse(admitted(tiny_model("llama", {})), ops), "200tok", kernels=known, speculate=4)
    assert answers(engine, asked)["a"].ids == expected
    assert known.condemned == [("modules", "RuntimeError: CUDA error: invalid argument")]


@pytest.fixture
def trials(llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelTrials:
    """Trials that found the kernels on numbers right and twice as fast, those on int8 slots wrong."""
    monkeypatch.setattr(kernel_trial, "obstacle", lambda *_: None)
    made = KernelTrials(llama.shape, llama.device, Trials(tmp_path / "trials"))
    policy = load_policy("heavy-hitter")
    made._note(part_of(slot_format("float32", "float32"), policy), Trial("right", gain=2.04))
    made._note(part_of(slot_format("int8", "float32"), policy), Trial("wrong", "codes: 1 differ"))
    return made


def test_kernels_are_taken_where_trial_and_model_found_them_right(
    llama: LoadedModel, trials: KernelTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, Failing(10**6, HARMS["NaN"][0]))
    told: list[str] = []
    engine = make_engine(llama, kernels=TriedKernels(llama, trials, told.append))
    assert (engine.cache.backend.name, engine.kernels.told) == ("triton", "verified, 2.0x")
    assert told == ["kernels on slots of numbers, mass by mean: triton: right, 2.04x as fast as torch"]
    engine = make_engine(llama, kv_dtype="int8", kernels=TriedKernels(llama, trials, told.append))
    assert engine.cache.backend.name == "torch"
    assert told[1:] == ["kernels on slots of 8 bits, mass by mean: torch: wrong: codes: 1 differ"]


def test_slots_in_another_dtype_than_the_model_stay_in_torch(llama: LoadedModel, trials: KernelTrials) -> None:
    told: list[str] = []
    engine = make_engine(llama, kv_dtype="bfloat16", kernels=TriedKernels(llama, trials, told.append))
    assert engine.cache.backend.name == "torch"
    assert "torch: slots in bfloat16 are not tried beside a model in torch.float32" in told[0]


class Wrong(Times099):
    """Right in a trial, wrong on this model."""

    name = "triton"

    def attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        out, received = super().attend(*given)
        return out * 0.5, received


def test_kernels_that_change_the_logits_of_the_model_are_not_taken_and_that_is_remembered(
    llama: LoadedModel, trials: KernelTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    loaded = replace(llama, fingerprint="of these weights")
    serve(monkeypatch, Wrong())
    told: list[str] = []
    assert make_engine(loaded, kernels=TriedKernels(loaded, trials, told.append)).cache.backend.name == "torch"
    assert "torch: wrong: the logits of this model on float32 slots are off by" in told[0]
    monkeypatch.setattr(engine_kernels, "unlike_torch", lambda *_: pytest.fail("found out again"))
    assert make_engine(loaded, kernels=TriedKernels(loaded, trials, told.append)).cache.backend.name == "torch"
    assert told[1] == told[0]


@pytest.mark.parametrize("family", but_few(["lfm2", "llama", "gemma2", "qwen3_next", "bamba"], "lfm2"))
def test_torch_beside_torch_is_like_torch_and_a_conversation_keeps_its_state(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    serve(monkeypatch, Failing(10**6, HARMS["NaN"][0]))
    asked = [Request("a", (5, 6, 7), max_tokens=5, row=0), Request("b", (8,), max_tokens=5, row=0)]
    engine, expected = (make_engine(loaded, "16tok") for _ in range(2))
    before = [answers(expected, [request])[request.id].ids for request in asked]
    if loaded.state is not None:
        loaded.state.reset()
    assert answers(engine, asked[:1])["a"].ids == before[0]
    assert unlike_torch(loaded, slot_format("float32", "float32")) is None
    assert answers(engine, asked[1:])["b"].ids == before[1]


def test_kernels_that_fail_in_mid_answer_are_not_taken_by_the_next_start(
    llama: LoadedModel, trials: KernelTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, Failing(400, HARMS["launch"][0]))
    engine = make_engine(llama, kernels=TriedKernels(llama, trials, lambda text: None))
    assert engine.cache.backend.name == "triton"
    answers(engine, [Request("a", (5, 6), max_tokens=400)])
    assert engine.cache.backend.name == "torch"
    part = part_of(slot_format("float32", "float32"), load_policy("heavy-hitter"))
    again = KernelTrials(llama.shape, llama.device, trials._store)
    assert str(again.finding(part)) == "wrong: in mid-answer: RuntimeError: CUDA error: invalid argument"
