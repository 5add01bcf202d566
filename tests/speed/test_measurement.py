"""What a measurement reports holds together; how fast it was is no test's business."""

from __future__ import annotations

import pytest
import torch

from kvlite.cache.policy import load_policy
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import plan_row
from kvlite.speed import roofline
from kvlite.speed.measurement import Measurement, Spread
from kvlite.speed.report import Workload
from kvlite.speed.roofline import measure_ceilings, weights_read_bytes
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, make_engine

SMALL = {"prompts": (6, 40), "contexts": (10, 100), "drift": (10, 1_000, 1_000_000), "steps": 3, "rounds": 2}


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(roofline._SIDE, "cpu", 16)


def measured(budget: str = "32tok", family: str = "llama", **options: str) -> Measurement:
    engine = make_engine(admitted(tiny_model(family, SUPPORTED[family])), budget, **options)
    measurement = Measurement(engine, Workload(**SMALL))  # type: ignore[arg-type]
    assert all(measurement.run())
    return measurement


def test_every_point_says_what_was_live_and_read_there() -> None:
    found = measured()
    weights = weights_read_bytes(found.engine.loaded)
    slot_bytes = sum(layer.slot_bytes for layer in found.engine.cache.layers.values())
    assert weights is not None
    assert [prompt.tokens for prompt in found.prompts] == [6, 40]
    assert [(point.tokens_seen, point.slots_live) for point in found.decoding] == [(10, 10), (100, 32)]
    for point in (*found.decoding, *found.drift):
        assert point.read_bytes == weights + point.slots_live * slot_bytes
        assert point.step.count == SMALL["steps"] * SMALL["rounds"]  # type: ignore[operator]
        assert point.bytes_s == pytest.approx(point.read_bytes * point.tokens_s)


def test_drift_is_measured_with_all_slots_full_from_the_first_point_on() -> None:
    found = measured()
    assert [(point.tokens_seen, point.slots_live) for point in found.drift] == [(32, 32), (1_000, 32), (1_000_000, 32)]
    first, last = found.drift[0].step.median_s, found.drift[-1].step.median_s
    assert found.drift_share == pytest.approx(last / first - 1)


def test_heads_whose_slots_are_shared_out_anew_are_measured_with_all_slots_full() -> None:
    loaded = admitted(tiny_model("llama", SUPPORTED["llama"]))
    needs = [[1.0 + 3.0 * head for head in range(layer.kv_heads)] for layer in loaded.shape.layers]
    spec = load_policy("heavy-hitter").cache_spec(slot_format("auto", "float32"), head_shares=lambda slots: needs)
    engine = make_engine(loaded, "64tok")
    engine.rows.resize(plan_row(loaded.shape, Budget.parse("64tok"), spec, free_bytes=None))
    assert len(engine.rows.plans) > 1
    most = max(slots for layer in engine.rows.plans[-1].head_slots for slots in layer)
    found = Measurement(engine, Workload(**SMALL))  # type: ignore[arg-type]
    assert all(found.run())
    assert [point.tokens_seen for point in found.decoding] == [10, 100]
    assert [point.tokens_seen for point in found.drift] == [most, 1_000, 1_000_000]


def test_what_cannot_be_measured_is_left_out_and_said() -> None:
    found = measured("64tok", on_full="stop")
    assert [point.tokens_seen for point in found.decoding] == [10]
    assert found.drift == [] and found.drift_share is None
    assert found.left_out == [
        "context 100: a conversation ends after 64 tokens here",
        "drift 64, 1,000, 1,000,000: a conversation ends after 64 tokens here",
    ]


def test_weights_read_are_all_but_an_embedding_table_of_its_own() -> None:
    own = admitted(tiny_model("llama", SUPPORTED["llama"] | {"tie_word_embeddings": False}))
    shared = admitted(tiny_model("llama", SUPPORTED["llama"] | {"tie_word_embeddings": True}))
    assert weights_read_bytes(own) == own.weight_bytes - 128 * 64 * 4
    assert weights_read_bytes(shared) == shared.weight_bytes
    assert weights_read_bytes(own) == weights_read_bytes(shared)


def test_of_a_mixture_of_experts_it_is_not_known_which_weights_a_token_reads() -> None:
    assert weights_read_bytes(admitted(tiny_model("qwen3_moe", SUPPORTED["qwen3_moe"]))) is None


def test_ceilings_say_what_was_copied_and_multiplied() -> None:
    found = measure_ceilings(torch.device("cpu"), torch.float32)
    assert (found.copied_bytes, found.side, found.dtype) == (2**16, 16, "float32")
    assert found.copy_bytes_s > 0 and found.flop_s > 0


def test_a_spread_keeps_the_rounds_apart() -> None:
    spread = Spread.of([[1.0, 2.0, 3.0], [5.0, 6.0, 100.0]])
    assert (spread.median_s, spread.p99_s, spread.low_s, spread.high_s, spread.count) == (4.0, 100.0, 2.0, 6.0, 6)
    assert Spread.of([[float(i) for i in range(1, 201)]]).p99_s == 198.0
