"""A prompt whose chunks are captured leaves the row of an eager one, bit for bit: the work is the same."""

from __future__ import annotations

import pytest
import torch

from kvlite.cache.policy import load_policy, policy_names
from kvlite.engine.chunk import ChunkKey
from kvlite.engine.engine import Engine
from kvlite.engine.graphs import Rerun
from kvlite.engine.request import Request
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine.capturing import assert_same, capturing, prompt
from tests.engine_for_tests import admitted, answers, make_engine

EVICTING = [name for name in policy_names() if load_policy(name).evicts]


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


def counting(engine: Engine) -> list[int]:
    """Fills with the row of every captured chunk that `engine` feeds from here on."""
    assert engine.captured is not None and engine.captured.chunk is not None
    chunk, rows, feed = engine.captured.chunk, [], engine.captured.chunk.feed

    def counted(row, ids):  # type: ignore[no-untyped-def]
        rows.append(row.index)
        return feed(row, ids)

    chunk.feed = counted  # type: ignore[method-assign]
    return rows


def assert_same_bits(captured: Engine, eager: Engine, row: int) -> None:
    held, expected = captured.snapshot(row), eager.snapshot(row)
    assert held.row == expected.row and held.cache.live == expected.cache.live
    for index, layer in expected.cache.layers.items():
        for name, tensor in layer.items():
            assert torch.equal(held.cache.layers[index][name], tensor), (index, name)


@pytest.mark.parametrize("kv_dtype", ["auto", "int4"])
@pytest.mark.parametrize("policy", EVICTING)
def test_a_long_prompt_leaves_the_slots_of_an_eager_one(llama: LoadedModel, policy: str, kv_dtype: str) -> None:
    eager, captured = (make(llama, "24tok", policy, kv_dtype=kv_dtype) for make in (make_engine, capturing))
    rows = counting(captured)
    asked = [Request("a", prompt(1, 100), max_tokens=1, row=0)]
    assert_same(answers(eager, asked), answers(captured, asked))
    assert_same_bits(captured, eager, 0)
    most, size = max(layer.slots for layer in captured.cache.layers.values()), captured.plan.chunk
    assert rows == [0] * sum(start + size > most for start in range(0, 100 - size + 1, size))


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "deepseek_v3", "cohere"])
def test_windows_sinks_and_experts_leave_the_slots_of_an_eager_prompt(family: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    eager, captured = make_engine(loaded, "24tok"), capturing(loaded, "24tok")
    rows = counting(captured)
    asked = [Request("a", prompt(1, 90), max_tokens=1, row=0)]
    assert_same(answers(eager, asked), answers(captured, asked))
    assert_same_bits(captured, eager, 0)
    assert rows


def test_rows_of_their_own_pins_and_turns_leave_the_slots_of_eager_prompts(llama: LoadedModel) -> None:
    eager, captured = (make(llama, "40tok", rows=3) for make in (make_engine, capturing))
    rows = counting(captured)
    turns = [
        Request("1", prompt(1, 120), max_tokens=1, pins=((2, 9), (30, 33)), row=2),
        Request("2", prompt(2, 150), max_tokens=1, row=1),
        Request("3", prompt(3, 140), max_tokens=1, pins=((5, 8),), row=2),
    ]
    for turn in turns:
        assert_same(answers(eager, [turn]), answers(captured, [turn]))
    for row in range(3):
        assert_same_bits(captured, eager, row)
    assert set(rows) == {1, 2}
    assert captured.captured.chunk.recordings.keys == (ChunkKey(0), ChunkKey(2, 2), ChunkKey(1), ChunkKey(2, 3))  # type: ignore[union-attr]


def test_a_prompt_longer_than_the_window_is_turned_between_chunks(llama: LoadedModel) -> None:
    eager, captured = make_engine(llama, "40tok"), capturing(llama, "40tok")
    rows = counting(captured)
    asked = [Request("a", prompt(1, 700), max_tokens=1, row=0)]
    assert_same(answers(eager, asked), answers(captured, asked))
    assert_same_bits(captured, eager, 0)
    assert captured.snapshot(0).row.rot < captured.snapshot(0).row.seen == 700
    assert len(rows) == 66


def test_prompts_between_answers_of_a_batch_give_the_tokens_of_eager_steps(llama: LoadedModel) -> None:
    asked = [Request(str(i), prompt(i, 30 + 29 * i), max_tokens=4 + 11 * i) for i in range(6)]
    captured = capturing(llama, rows=3)
    rows = counting(captured)
    assert_same(answers(make_engine(llama, "24tok", rows=3), asked), answers(captured, asked))
    assert set(rows) == {0, 1, 2}


def test_chunks_that_find_room_are_fed_eagerly(llama: LoadedModel) -> None:
    captured = capturing(llama, "80tok")
    rows = counting(captured)
    answers(captured, [Request("a", prompt(1, 80), max_tokens=1)])
    assert rows == []


def test_slots_that_nothing_is_evicted_from_have_no_chunk_to_capture(llama: LoadedModel) -> None:
    for policy, on_full in (("full", None), ("heavy-hitter", "stop")):
        engine = capturing(llama, "24tok", policy, on_full=on_full)
        assert engine.captured is not None and engine.captured.chunk is None


def test_scores_of_a_text_are_not_those_of_the_captured_chunk(llama: LoadedModel) -> None:
    eager, captured = (make(llama, "24tok", chunk_limit=1) for make in (make_engine, capturing))
    assert captured.plan.chunk == 1
    scores = [[engine.score([(token,)]) for token in prompt(1, 40)] for engine in (eager, captured)]
    assert torch.equal(torch.cat(scores[0]), torch.cat(scores[1]))


def test_a_model_of_which_only_prompts_cannot_be_captured_decodes_in_captured_steps() -> None:
    loaded = admitted(tiny_model("llama", {}))
    norm = loaded.model.model.norm

    def asks_of_chunks(x: torch.Tensor, weighs: torch.Tensor = norm.weight) -> torch.Tensor:
        return x * weighs if x.shape[1] == 1 or float(x.sum()) > 1e30 else x

    norm.forward = asks_of_chunks
    engine, told = make_engine(loaded, "24tok"), []
    engine.capture(Rerun(), told.append)
    assert str(engine.step) == "captured, prefill eager: aten::_local_scalar_dense reads the device"
    assert told == ["--capture: prefill runs eagerly: aten::_local_scalar_dense reads the device"]
    asked = [Request("a", prompt(1, 60), max_tokens=12)]
    assert_same(answers(make_engine(loaded, "24tok"), asked), answers(engine, asked))
    assert engine.step.name == "captured"
