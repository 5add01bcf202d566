"""What cannot be recorded once an answer is under way is computed eagerly from there on: no token lost or repeated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvlite.cache.slots import Slots
from kvlite.engine.ahead import Ahead
from kvlite.engine.captured import CapturedStep, Key
from kvlite.engine.engine import Engine
from kvlite.engine.graphs import Rerun, first_error
from kvlite.engine.request import Request
from kvlite.errors import OutOfMemory
from kvlite.models.loaded import LoadedModel
from tests.architectures import tiny_model
from tests.engine.capturing import assert_same, assert_same_cache, prompt, requests
from tests.engine_for_tests import admitted, answers, make_engine

SAID = "CUDA error: operation not permitted when stream is capturing"


class FailsAfter(Rerun):
    """Records so many pieces of work, and then fails as CUDA does."""

    def __init__(self, count: int, error: RuntimeError | None = None) -> None:
        self.left = count
        self.error = RuntimeError(f"{SAID}\nCompile with TORCH_USE_CUDA_DSA") if error is None else error

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().record(body)


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


def failing(loaded: LoadedModel, recorder: Rerun, budget: str = "24tok", **options: object) -> tuple[Engine, list[str]]:
    """An engine that captures at first, and what it warns of."""
    engine, told = make_engine(loaded, budget, **options), []
    engine.capture(recorder, told.append)
    assert str(engine.step) == "captured" and not told
    return engine, told


def assert_gave_up(engine: Engine, told: list[str], why: str) -> None:
    said = f"llama under policy heavy-hitter cannot be captured: {why}"
    assert str(engine.step) == f"eager: {said}" and engine.captured is None
    assert told == [f"--capture: decode steps run eagerly: {said}"]


@pytest.mark.parametrize("count", range(3))
def test_after_a_graph_that_fails_at_the_start_nothing_is_recorded(llama: LoadedModel, count: int) -> None:
    engine, told = make_engine(llama, "24tok"), []
    recorder = FailsAfter(count)
    engine.capture(recorder, told.append)
    assert_gave_up(engine, told, SAID)
    answers(engine, requests(1))
    assert recorder.left == -1


@pytest.mark.parametrize("count", range(3, 6))
def test_a_graph_that_fails_in_mid_answer_changes_no_token(llama: LoadedModel, count: int) -> None:
    engine, told = failing(llama, FailsAfter(count), rows=3)
    assert_same(answers(make_engine(llama, "24tok", rows=3), requests()), answers(engine, requests()))
    assert_gave_up(engine, told, SAID)


def test_a_graph_that_fails_with_a_step_in_flight_leaves_the_cache_of_eager_steps(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight: list[bool] = []
    launched = Ahead._launched

    def noted(ahead: Ahead, work: object) -> object:
        is_flying, started = ahead.flight is not None, launched(ahead, work)  # type: ignore[arg-type]
        if started is None:
            in_flight.append(is_flying)
        return started

    monkeypatch.setattr(Ahead, "_launched", noted)
    asked = [Request("a", prompt(1, 250), max_tokens=20, row=0), Request("b", prompt(2, 20), max_tokens=60, row=1)]
    eager = make_engine(llama, "300tok", rows=2)
    expected = answers(eager, asked)
    for count in (3, 4):
        engine, told = failing(llama, FailsAfter(count), "300tok", rows=2)
        assert_same(expected, answers(engine, asked))
        assert_same_cache(engine, eager)
        assert_gave_up(engine, told, SAID)
    assert in_flight == [False, True]  # the first step of the answers, and the one that reaches beyond 256 slots


def test_a_chunk_that_fails_in_mid_prompt_is_fed_once(llama: LoadedModel) -> None:
    asked = [Request("a", prompt(1, 100), max_tokens=9, row=1)]
    eager, (engine, told) = make_engine(llama, "24tok", rows=2), failing(llama, FailsAfter(3), rows=2)
    assert_same(answers(eager, asked), answers(engine, asked))
    assert_same_cache(engine, eager)
    assert_gave_up(engine, told, SAID)


def test_work_that_asks_the_host_only_in_some_shape_is_found_when_it_comes(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CapturedStep._step

    def asks(captured: CapturedStep, key: Key) -> None:
        step(captured, key)
        if key.rows > 1:
            captured.tensors.integers.sum().item()

    monkeypatch.setattr(CapturedStep, "_step", asks)
    engine, told = failing(llama, Rerun(), rows=3)
    assert_same(answers(make_engine(llama, "24tok", rows=3), requests()), answers(engine, requests()))
    assert_gave_up(engine, told, "aten::_local_scalar_dense reads the device")


@pytest.mark.parametrize("policy", ["full", "heavy-hitter"])
def test_eviction_for_pins_is_rehearsed_whatever_the_policy(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    evict = Slots.evict_waiting

    def asks(slots: Slots, step: object) -> None:
        if step.pins is not None:  # type: ignore[attr-defined]
            step.pins.sum().item()  # type: ignore[attr-defined]
        evict(slots, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Slots, "evict_waiting", asks)
    engine = make_engine(llama, "24tok", policy)
    engine.capture(Rerun())
    assert engine.captured is None and "reads the device" in str(engine.step)


def test_an_error_without_words_is_named(llama: LoadedModel) -> None:
    engine = make_engine(llama)
    engine.capture(FailsAfter(0, RuntimeError("")))
    assert str(engine.step) == "eager: llama under policy heavy-hitter cannot be captured: RuntimeError"


@pytest.mark.parametrize(
    "refused",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize("count", [0, 2, 3])
def test_memory_that_runs_out_is_no_reason_to_go_on(llama: LoadedModel, refused: RuntimeError, count: int) -> None:
    engine = make_engine(llama, "24tok", rows=3)
    with pytest.raises(OutOfMemory, match="give a smaller --kv-budget"):
        engine.capture(FailsAfter(count, refused))
        answers(engine, requests())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(SAID)])
def test_a_capture_that_fails_again_as_it_ends_raises_what_came_first(error: RuntimeError) -> None:
    with pytest.raises(type(error), match=str(error)), first_error():
        try:
            raise error
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
