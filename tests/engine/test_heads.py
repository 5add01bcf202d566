"""Engines whose KV heads have different numbers of slots: answers, batches, snapshots, graphs, accounting."""

from __future__ import annotations

import pytest
import torch

from kvlite.engine.decode_graphs import GraphRecorder
from kvlite.engine.engine import Engine
from kvlite.engine.memory_report import EngineMemory
from kvlite.engine.request import Request
from kvlite.models.loaded import LoadedModel
from kvlite_kernels.backend import Backend
from tests.architectures import SUPPORTED, tiny_model
from tests.cache.driving import positions
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few


@pytest.fixture(scope="module", params=but_few(["llama", "gpt_oss"], "llama"))
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return admitted(tiny_model(request.param, SUPPORTED[request.param]))


def unequal(loaded: LoadedModel, budget: str = "40tok", policy: str = "heavy-hitter", **options: object) -> Engine:
    """An engine whose heads need 1, 3, 9, 1, ... times as much."""

    def shares(slots: int) -> list[list[float]]:
        return [
            [3.0 ** ((index + head) % 3) for head in range(layer.kv_heads)]
            for index, layer in enumerate(loaded.shape.layers)
        ]

    engine = make_engine(loaded, budget, policy, head_shares=shares, **options)
    assert any(len(layer.parts) > 1 for layer in engine.cache.layers.values())
    return engine


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def test_an_answer_is_that_of_the_model_while_nothing_is_evicted(loaded: LoadedModel) -> None:
    asked = [Request("a", prompt(0, 30), max_tokens=10)]
    whole = answers(make_engine(loaded, "full", "full"), asked)["a"].ids
    engine = unequal(loaded, "250tok")
    assert min(part.num_slots for part in engine.cache.parts if part.shape.window is None) >= 40
    assert answers(engine, asked)["a"].ids == whole


@pytest.mark.parametrize("policy", but_few(["heavy-hitter", "keyformer", "snapkv", "window"], "heavy-hitter"))
def test_an_answer_does_not_depend_on_the_batch(loaded: LoadedModel, policy: str) -> None:
    asked = [Request(str(i), prompt(i, 3 + 23 * i), max_tokens=10 + 4 * i) for i in range(5)]
    together, alone = (answers(unequal(loaded, policy=policy, rows=rows), asked) for rows in (3, 1))
    assert {key: done.ids for key, done in together.items()} == {key: done.ids for key, done in alone.items()}
    assert {key: done.kv.live_bytes for key, done in together.items()} == {
        key: done.kv.live_bytes for key, done in alone.items()
    }


@pytest.mark.parametrize("policy", ["heavy-hitter", "replay"])
def test_steps_over_all_heads_at_once_are_those_part_by_part(
    loaded: LoadedModel, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Request("a", prompt(4, 130), max_tokens=60, row=0)]
    together, each = unequal(loaded, "100tok", policy), unequal(loaded, "100tok", policy)
    ids = answers(together, asked)["a"].ids
    monkeypatch.setattr(Backend, "go_together", lambda *_: False)
    assert answers(each, asked)["a"].ids == ids
    for part, other in zip(together.cache.parts, each.cache.parts, strict=True):
        assert positions(part) == positions(other)
        torch.testing.assert_close(part.tensors["v"], other.tensors["v"], rtol=1e-4, atol=1e-5)


def test_an_answer_undone_and_given_again_is_the_same(loaded: LoadedModel) -> None:
    engine = unequal(loaded)
    answers(engine, [Request("1", prompt(1, 90), max_tokens=20, row=0)])
    before = engine.rows.snapshot(0)
    asked = [Request("2", prompt(2, 15), max_tokens=30, row=0)]
    first = answers(engine, asked)["2"].ids
    engine.rows.restore(0, before)
    assert answers(engine, asked)["2"].ids == first


def test_bytes_are_those_of_the_plan_and_layers_add_up(loaded: LoadedModel) -> None:
    engine = unequal(loaded)
    done = answers(engine, [Request("1", prompt(1, 90), max_tokens=20)])["1"]
    reading = EngineMemory(engine).read()
    terms = ("kv", "policy_state", "positions", "staging")
    assert sum(reading.terms[name] for name in terms) == engine.plan.reserved_bytes == done.kv.reserved_bytes
    assert sum(layer.bytes for layer in reading.layers) == reading.counts.live_bytes > 0
    full = [layer for index, layer in enumerate(reading.layers) if loaded.shape.layers[index].window is None]
    assert sum(layer.kept for layer in full) / len(full) == pytest.approx(done.kv.tokens_kept, abs=1)


def test_steps_by_graphs_are_those_of_eager_ones(loaded: LoadedModel) -> None:
    asked = [
        Request("a", prompt(1, 30), max_tokens=110, row=0, pins=((2, 9),)),
        Request("b", prompt(2, 9), max_tokens=40, row=1),
    ]
    captured = unequal(loaded, rows=2, recorder=GraphRecorder())
    assert captured.step == "captured" and captured.graphs is not None
    eager = unequal(loaded, rows=2)
    expected = answers(eager, asked)
    assert {key: done.ids for key, done in answers(captured, asked).items()} == {
        key: done.ids for key, done in expected.items()
    }


def test_pins_stay_in_heads_that_have_room_and_what_holds_them_on_average_is_not_refused(loaded: LoadedModel) -> None:
    engine = unequal(loaded, "60tok")
    request = Request("a", prompt(1, 150), max_tokens=60, pins=((20, 50),))
    assert answers(engine, [request])["a"].error is None
    kept = [
        (part.num_slots, {*range(20, 50)} <= set(head.tolist()))
        for part in engine.cache.parts
        if part.shape.window is None
        for head in part.slots.pos[0]
    ]
    assert {stays for slots, stays in kept if slots >= engine.rows.policy.min_slots(30)} == {True}
    assert all({0, 1, 2, 3} <= set(head.tolist()) for part in engine.cache.parts if part.shape.window is None
               for head in part.slots.pos[0])  # fmt: skip
    crowded = answers(engine, [Request("b", prompt(1, 150), pins=((20, 90),))])["b"].error
    assert crowded is not None and "70" not in str(crowded).split("give")[0]
