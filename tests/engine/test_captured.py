"""Captured steps against eager ones: the same tokens and the same cache, whatever ends an answer and when.

The CUDA graph itself is left out: a recorded step is run again (`Rerun`), one ahead of the host all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlite.cache.policy import policy_names
from kvlite.engine import recordings as recordings_module
from kvlite.engine.ahead import Ahead
from kvlite.engine.captured import bucket
from kvlite.engine.engine import Engine
from kvlite.engine.graphs import Rerun
from kvlite.engine.memory_report import measured_terms
from kvlite.engine.request import Completion, FinishReason, Request, Token
from kvlite.errors import NumericError
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine.capturing import assert_same, assert_same_cache, capturing, prompt, requests
from tests.engine_for_tests import admitted, answers, make_engine

DYNAMIC_ROPE = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


@pytest.mark.parametrize("policy", policy_names())
def test_a_ragged_batch_gives_the_tokens_of_eager_steps(llama: LoadedModel, policy: str) -> None:
    budget = "200tok" if policy == "full" else "24tok"
    eager = answers(make_engine(llama, budget, policy, rows=3), requests())
    captured = capturing(llama, budget, policy, rows=3)
    assert_same(eager, answers(captured, requests()))
    assert captured.step.name == "captured"


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "int4"])
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "deepseek_v3", "cohere"])
def test_windows_sinks_and_experts_give_the_tokens_of_eager_steps(family: str, kv_dtype: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    asked = [Request("a", prompt(1, 40), max_tokens=40)]
    eager = make_engine(loaded, "24tok", kv_dtype=kv_dtype)
    captured = capturing(loaded, "24tok", kv_dtype=kv_dtype)
    assert_same(answers(eager, asked), answers(captured, asked))


def test_extents_change_within_an_answer(llama: LoadedModel) -> None:
    asked = [Request("a", prompt(1, 250), max_tokens=20), Request("b", prompt(2, 20), max_tokens=60)]
    captured = capturing(llama, "300tok", rows=2)
    assert_same(answers(make_engine(llama, "300tok", rows=2), asked), answers(captured, asked))
    reaches = {key.reach for key in captured.captured.ahead.step.recordings.keys}  # type: ignore[union-attr]
    assert {((300, 256),), ((300, 300),)} <= reaches


@pytest.mark.parametrize("most", [1, 2])
def test_recordings_that_make_room_change_no_token(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(recordings_module, "MOST_RECORDINGS", most)
    captured = capturing(llama, rows=3)
    assert_same(answers(make_engine(llama, rows=3, budget="24tok"), requests()), answers(captured, requests()))
    assert len(captured.captured.ahead.step.recordings.keys) <= most  # type: ignore[union-attr]


def test_rotations_that_fall_due_in_mid_answer_are_turned(llama: LoadedModel) -> None:
    asked = [Request("a", prompt(1, 30), max_tokens=700, row=0)]
    eager, captured = make_engine(llama, "40tok"), capturing(llama, "40tok")
    assert_same(answers(eager, asked), answers(captured, asked))
    assert captured.snapshot(0).row.rot < captured.snapshot(0).row.seen  # the window is 512 positions
    assert_same_cache(captured, eager)


def test_pinned_spans_stay(llama: LoadedModel) -> None:
    asked = [Request("1", prompt(1, 30), max_tokens=40, pins=((2, 9),), row=0)]
    asked += [Request("2", prompt(2, 9), max_tokens=40, pins=((0, 3),), row=1)]
    eager, captured = make_engine(llama, "30tok", rows=2), capturing(llama, "30tok", rows=2)
    assert_same(answers(eager, asked), answers(captured, asked))
    assert_same_cache(captured, eager)


@pytest.mark.parametrize("budget", ["24tok", "200tok"])
def test_a_stop_id_seen_one_step_late_leaves_the_cache_of_eager_steps(llama: LoadedModel, budget: str) -> None:
    free = answers(make_engine(llama, budget), [Request("a", prompt(1, 40), max_tokens=30)])["a"].ids
    for stop in dict.fromkeys(free):
        asked = [Request("a", prompt(1, 40), max_tokens=30, stop_ids=frozenset({stop}), row=0)]
        eager, captured = make_engine(llama, budget), capturing(llama, budget)
        assert_same(answers(eager, asked), answers(captured, asked))
        assert_same_cache(captured, eager)
        turn = [Request("b", prompt(5, 12), max_tokens=10, row=0)]
        assert_same(answers(eager, turn), answers(captured, turn))


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.sets(st.integers(0, 127), max_size=40)), min_size=1),
    st.sampled_from(["heavy-hitter", "scissorhands", "snapkv", "window"]),
    st.sampled_from(["24tok", "200tok"]),
)
def test_running_ahead_leaves_the_cache_byte_for_byte_as_it_is_without(
    turns: list[tuple[int, int, set[int]]], policy: str, budget: str
) -> None:
    asked = [
        Request(str(i), prompt(i, length), max_tokens=most, stop_ids=frozenset(stops), row=i % 2)
        for i, (length, most, stops) in enumerate(turns)
    ]
    loaded = admitted(tiny_model("llama", {"num_hidden_layers": 1}))
    ahead, behind = (capturing(loaded, budget, policy, rows=2) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        one_by_one = [answers(ahead, [request]) for request in asked]
        patch.setattr(Ahead, "_goes_on", lambda *_: False)
        for expected, request in zip(one_by_one, asked, strict=True):
            assert_same(answers(behind, [request]), expected)
    for row in range(2):
        held, expected_row = ahead.snapshot(row), behind.snapshot(row)
        assert (held.row, held.cache.live) == (expected_row.row, expected_row.cache.live)
        for index, layer in expected_row.cache.layers.items():
            assert all(torch.equal(held.cache.layers[index][name], tensor) for name, tensor in layer.items())


def cancelled(engine: Engine, request: Request, after: int) -> tuple[list[object], Completion]:
    events: list[object] = []
    for event in engine.run([request]):
        events.append(event)
        if isinstance(event, Token) and event.index == after:
            engine.cancel(request.id)
    assert isinstance(events[-1], Completion)
    return events[:-1], events[-1]


@pytest.mark.parametrize("budget", ["24tok", "200tok"])
def test_cancelling_keeps_the_same_answer_and_its_last_token_is_fed(llama: LoadedModel, budget: str) -> None:
    asked = Request("a", prompt(1, 40), row=0)
    eager, captured = make_engine(llama, budget), capturing(llama, budget)
    tokens, done = cancelled(captured, asked, after=14)
    expected_tokens, expected = cancelled(eager, asked, after=14)
    assert (tokens, done.ids, done.finish_reason) == (expected_tokens, expected.ids, FinishReason.CANCELLED)
    assert done.kv.tokens_seen == expected.kv.tokens_seen + 1
    assert captured.snapshot(0).row.unfed is None
    longer = make_engine(llama, budget)
    cancelled(longer, asked, after=15)  # has fed what was token 14, and drawn one that nobody asked for
    longer._rows[0].unfed = None
    longer._rows[0].used = set(captured.snapshot(0).row.used)
    assert_same_cache(captured, longer)
    turn = [Request("b", prompt(5, 12), max_tokens=20, row=0)]
    continued = answers(captured, turn)
    assert_same(answers(longer, turn), continued)
    if budget == "200tok":  # nothing is evicted, so chunks do not matter
        assert answers(eager, turn)["b"].ids == continued["b"].ids


def test_closing_the_stream_leaves_a_conversation_that_goes_on(llama: LoadedModel) -> None:
    engine = capturing(llama, "200tok")
    stream = engine.run([Request("a", prompt(1, 20), row=0)])
    ids = [event.id for _, event in zip(range(6), stream, strict=False) if isinstance(event, Token)]
    stream.close()  # type: ignore[attr-defined]
    second = answers(engine, [Request("b", prompt(2, 9), max_tokens=9, row=0)])["b"]
    whole = Request("w", (*prompt(1, 20), *ids, *prompt(2, 9)), max_tokens=9)
    assert second.ids == answers(make_engine(llama, "200tok"), [whole])["w"].ids


@pytest.mark.parametrize("on_full", ["stop", "error"])
def test_full_slots_end_the_answer_where_eager_steps_do(llama: LoadedModel, on_full: str) -> None:
    asked = [Request("a", prompt(1, 9), row=0), Request("b", prompt(2, 15), row=1)]
    eager, captured = (make(llama, "24tok", rows=2, on_full=on_full) for make in (make_engine, capturing))
    assert_same(answers(eager, asked), answers(captured, asked))
    assert_same_cache(captured, eager)


def test_positions_that_cannot_move_end_the_answer_where_eager_steps_do() -> None:
    loaded = admitted(tiny_model("opt", SUPPORTED["opt"]))
    assert loaded.rotations is None
    asked = [Request("a", prompt(1, 500), max_tokens=40)]
    assert_same(answers(make_engine(loaded, "64tok"), asked), answers(capturing(loaded, "64tok"), asked))


def test_numbers_that_are_none_end_the_answer() -> None:
    loaded = admitted(tiny_model("llama", {}))
    engine = capturing(loaded)
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(torch.nan)
    engine._rows[0].unfed = 5
    done = answers(engine, [Request("a", (5,), max_tokens=9, row=0)])["a"]
    assert isinstance(done.error, NumericError)


def test_requests_join_while_others_decode(llama: LoadedModel) -> None:
    def trickle() -> Iterator[Request | None]:
        for request in requests():
            yield request
            yield from [None] * 4

    eager, captured = make_engine(llama, "24tok", rows=3), capturing(llama, rows=3)
    assert_same(
        {done.request_id: done for done in eager.run(trickle()) if isinstance(done, Completion)},
        {done.request_id: done for done in captured.run(trickle()) if isinstance(done, Completion)},
    )


def test_the_host_asks_for_a_step_only_once_the_next_is_started(llama: LoadedModel) -> None:
    class Logged(Rerun):
        def __init__(self) -> None:
            self.log: list[str] = []

        def read(self, tokens: torch.Tensor):  # type: ignore[no-untyped-def]
            wait = super().read(tokens)
            self.log.append("start")
            return lambda: (self.log.append("wait"), wait())[1]

    recorder, engine = Logged(), make_engine(llama)
    engine.capture(recorder)
    answers(engine, [Request("a", prompt(1, 9), max_tokens=5)])
    assert recorder.log == ["start", "start", "wait", "start", "wait", "start", "wait", "wait"]


def test_steps_work_on_tensors_that_stay(llama: LoadedModel) -> None:
    engine = capturing(llama, rows=2)
    tensors = engine.captured.ahead.step.tensors  # type: ignore[union-attr]
    before = [x.data_ptr() for x in (tensors.integers, *engine.cache.tensors())]
    answers(engine, requests())
    assert [x.data_ptr() for x in (tensors.integers, *engine.cache.tensors())] == before
    assert tensors.num_bytes == 2 * (8 * 8 + 4 * 5 + 2 * 128 + 8)
    assert measured_terms(engine)["step"] == tensors.num_bytes + 8 * engine.plan.chunk + 4 * 128


@pytest.mark.parametrize("policy", [name for name in policy_names() if name != "keyformer"])
def test_a_step_asks_the_host_for_nothing_by_any_policy(llama: LoadedModel, policy: str) -> None:
    assert str(without_values(llama, policy).step) == "captured"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "cohere", "glm4"])
def test_a_step_asks_the_host_for_nothing_in_any_model_of_these(family: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    assert str(without_values(loaded, "heavy-hitter").step) == "captured"


def without_values(loaded: LoadedModel, policy: str) -> Engine:
    """An engine whose tensors hold nothing, so that whoever wants to know a value is found out."""
    device = torch.device("meta")
    engine = make_engine(replace(loaded, model=copy.deepcopy(loaded.model).to(device), device=device), policy=policy)
    engine.capture(Rerun())
    return engine


@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        ("llama", DYNAMIC_ROPE, "aten::_local_scalar_dense reads the device"),
        ("lfm2", SUPPORTED["lfm2"], "lfm2 models carry state"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why(family: str, config: dict[str, object], why: str) -> None:
    loaded = admitted(tiny_model(family, config))
    assert_runs_eagerly(loaded, why)


def test_experts_that_are_chosen_on_the_host_run_eagerly() -> None:
    model = tiny_model("mixtral", SUPPORTED["mixtral"])
    model.set_experts_implementation("eager")
    assert_runs_eagerly(admitted(model), "aten::")


def assert_runs_eagerly(loaded: LoadedModel, why: str) -> None:
    asked = [Request("a", prompt(1, 20), max_tokens=12)]
    engine = make_engine(loaded)
    engine.capture(Rerun())
    assert engine.step.name == "eager" and why in str(engine.step)
    assert_same(answers(make_engine(loaded), asked), answers(engine, asked))


def test_buckets_are_powers_of_two_up_to_all_rows() -> None:
    assert [bucket(rows, 6) for rows in range(1, 7)] == [1, 2, 4, 4, 6, 6]
