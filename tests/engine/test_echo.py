"""Queries that ask once more from behind their chunk: what is known of tokens then, and what stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

from kvlite.cache.observing import ASKED
from kvlite.cache.policy import load_policy
from kvlite.cache.step import UNHEARD, Step
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request
from kvlite.models.attention_interface import AttentionLayers
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import probe_ids
from kvlite_kernels import echo
from kvlite_kernels.echo import heard
from kvlite_kernels.kinds import Heads, Statistic
from kvlite_kernels.lowbit import quantise
from kvlite_kernels.reference import Geometry, Segment
from kvlite_kernels.statistic import Observation
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return admitted(tiny_model("llama", SUPPORTED["llama"]))


def prompt(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(2, 128, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def held(engine: Engine, row: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Positions in order and the statistic of each, by part."""
    found = []
    for part in engine.cache.parts:
        live = engine.cache.live(row, part.num_slots)
        pos, order = part.slots.pos[row, :, :live].sort(-1)
        assert part.slots.statistic is not None
        found.append((pos, part.slots.statistic[row, :, :live].gather(-1, order)))
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3", "gpt_oss", "gemma3n_text"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_while_there_is_room_answers_are_those_of_the_full_cache(family: str, kv_dtype: str) -> None:
    model = admitted(tiny_model(family, SUPPORTED[family]))
    request = Request("a", prompt(50), max_tokens=12)
    full, again = (
        answers(make_engine(model, "128tok", policy, kv_dtype=kv_dtype), [request])["a"]
        for policy in ("full", "replay")
    )
    assert again.ids == full.ids and again.kv.tokens_seen == full.kv.tokens_seen


def test_tokens_are_known_by_what_their_own_queries_give_them_from_behind(loaded: LoadedModel) -> None:
    ids = probe_ids(loaded, 40)[0].tolist()
    engine = make_engine(loaded, "256tok", "replay")
    engine.score([tuple(ids)])
    expected = given_from_behind(loaded, ids)
    for (pos, known), wanted in zip(held(engine), expected, strict=True):
        assert pos.tolist() == [[*range(40)]] * 2
        torch.testing.assert_close(known, wanted, rtol=1e-4, atol=1e-6)


def given_from_behind(loaded: LoadedModel, ids: list[int]) -> list[torch.Tensor]:
    """Attention of the queries to all keys from behind them, the most of a group: of each layer [H_KV, n]."""
    queries, keys = (rotated(loaded, ids, start) for start in (len(ids) + ASKED, 0))
    found = []
    for (q, _), (_, k) in zip(queries, keys, strict=True):
        logits = q.unflatten(0, (2, -1)) @ k[:, None].mT * q.shape[-1] ** -0.5  # [H_KV, G, n, n]
        found.append(logits.softmax(-1).amax(1).sum(1))
    return found


def rotated(loaded: LoadedModel, ids: list[int], start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The queries and keys of a text that begins at a position: of each layer [H_Q, n, D] and [H_KV, n, D]."""
    seen = []

    def noted(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Any:
        seen.append((query[0], key[0]))
        return eager_attention_forward(module, query, key, value, mask, **options)

    AttentionInterface.register("noted", noted)
    AttentionMaskInterface.register("noted", eager_mask)
    loaded.model.set_attn_implementation("noted")
    with torch.inference_mode():
        loaded.model(torch.tensor([ids]), position_ids=torch.arange(start, start + len(ids))[None])
    loaded.model.set_attn_implementation("kvlite")
    return seen


@pytest.mark.parametrize("policy", ["replay", "replay:bias=true"])
def test_what_is_evicted_is_the_same_whatever_the_neighbours(loaded: LoadedModel, policy: str) -> None:
    texts = [prompt(90, 1), prompt(63, 2)]
    together = make_engine(loaded, "40tok", policy, rows=2)
    for start in range(0, 90, together.plan.chunk):
        together.score([text[start : start + together.plan.chunk] for text in texts])
    for row, text in enumerate(texts):
        alone = make_engine(loaded, "40tok", policy)
        for start in range(0, len(text), alone.plan.chunk):
            alone.score([text[start : start + alone.plan.chunk]])
        for (pos, known), (other, others) in zip(held(alone), held(together, row), strict=True):
            assert torch.equal(pos, other)
            torch.testing.assert_close(known, others, rtol=1e-3, atol=1e-5)


def biases(engine: Engine) -> list[Tensor]:
    return [part.slots.bias for part in engine.cache.parts if part.slots.bias is not None]


@pytest.mark.parametrize("kv_dtype", ["auto", "k6v4"])
def test_what_goes_leaves_a_bias_to_what_stays_until_the_row_ends(
    loaded: LoadedModel, kv_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite_kernels.bias.NEAR", -1.0)  # keys of a model that learned nothing are far apart
    engine = make_engine(loaded, "40tok", "replay:bias=true", kv_dtype=kv_dtype)
    assert engine.cache.num_bytes == engine.plan.reserved_bytes
    text = prompt(90)
    for start in range(0, 40, 10):
        engine.score([text[start : start + 10]])
    assert not any(bool(bias.any()) for bias in biases(engine))  # nothing went
    for start in range(40, 90, 10):
        engine.score([text[start : start + 10]])
    held = engine.rows.snapshot(0)
    for part, bias in zip(engine.cache.parts, biases(engine), strict=True):
        assert 0 < float(bias.amax()) <= 2 and float(bias.amin()) == 0
        assert not bias[part.slots.pos < 4].any()  # sinks take nothing
        assert not bias[..., -1].any()  # where the next token waits
    answers(engine, [Request("a", prompt(10), max_tokens=20, row=0)])
    engine.rows.restore(0, held)
    again = engine.score([text[:10]])
    engine.rows.restore(0, held)
    assert torch.equal(again, engine.score([text[:10]]))
    engine.rows.reset(0)
    assert len(biases(engine)) == len(engine.cache.parts) and not any(bool(bias.any()) for bias in biases(engine))


def test_an_answer_is_heard_once_it_is_a_quarter_of_the_slots_long(loaded: LoadedModel) -> None:
    engine = make_engine(loaded, "64tok", "replay")
    assert engine.plan.chunk == 64
    answers(engine, [Request("a", prompt(20), max_tokens=30, row=0)])
    for pos, known in held(engine):
        assert bool((known[pos < 36] > 0).all()) and bool((known[pos < 36] < 100).all())
        assert bool((known[pos >= 36] == UNHEARD).all())


def test_tokens_that_come_one_by_one_are_known_as_those_of_a_chunk(loaded: LoadedModel) -> None:
    at_once, one_by_one = (make_engine(loaded, "64tok", "replay") for _ in range(2))
    ids = prompt(40)
    for start in range(0, 32, 16):
        at_once.score([ids[start : start + 16]])
    for token in ids[:33]:  # the last finds a chunk that is due
        one_by_one.score([(token,)])
    for (pos, known), (other, others) in zip(held(at_once), held(one_by_one), strict=True):
        assert torch.equal(pos, other[:, :32])
        torch.testing.assert_close(known, others[:, :32], rtol=1e-4, atol=1e-6)


def test_the_rest_of_an_answer_is_heard_before_the_next_prompt(loaded: LoadedModel) -> None:
    engine = make_engine(loaded, "64tok", "replay")
    answers(engine, [Request("a", prompt(20), max_tokens=10, row=0)])
    assert any(bool((known == UNHEARD).any()) for _, known in held(engine))
    answers(engine, [Request("b", prompt(20), max_tokens=1, row=0)])
    assert not any(bool((known == UNHEARD).any()) for _, known in held(engine))


def test_heads_with_different_numbers_of_slots_repeat_an_answer_too(loaded: LoadedModel) -> None:
    needs = [[0.1, 0.9], [0.9, 0.1], [0.4, 0.4], [0.1, 0.9]]
    engine = make_engine(loaded, "64tok", "replay", head_shares=lambda slots: needs)
    answers(engine, [Request("a", prompt(60), max_tokens=40, row=0)])
    assert len(engine.cache.parts) > 4
    for pos, known in held(engine):
        assert bool((known[pos < 4] > 0).all()) and bool((known > 0).sum() > known.numel() // 2)


def test_a_request_that_evicts_nothing_is_not_heard(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = noted_steps(monkeypatch)
    answers(make_engine(loaded, "64tok", "replay"), [Request("a", prompt(20), max_tokens=30)])
    assert steps and not any(step.echo for step in steps)
    answers(make_engine(loaded, "64tok", "replay"), [Request("a", prompt(40), max_tokens=30)])
    assert sum(step.pos.shape[1] for step in steps if step.echo) >= 40  # and again as an answer


def noted_steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps to come."""
    steps: list[Step] = []
    forward = LoadedModel.forward

    def noted(self: LoadedModel, ids: Tensor, cache: AttentionLayers, step: Step, last: int = 1) -> Tensor:
        steps.append(step)
        return forward(self, ids, cache, step, last)

    monkeypatch.setattr(LoadedModel, "forward", noted)
    return steps


def test_large_products_in_float16_give_numbers() -> None:
    q, k = (torch.full((1, 2, 3, 8), 110.0, dtype=torch.float16) for _ in range(2))  # of which 8 are 96,800 in all
    pos = torch.arange(3).int()
    segment = Segment(k, k, pos.expand(1, 2, 3), None, 3)
    observation = Observation(Statistic.MASS, torch.ones(1, 3), heads="max")
    got = heard(q, (pos + 9)[None], [segment], Geometry(8**-0.5), observation)
    torch.testing.assert_close(got, torch.ones(1, 2, 3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("heads", ["max", "mean"])
def test_few_heads_are_widened_at_once_and_a_query_that_sees_nothing_gives_nothing(
    monkeypatch: pytest.MonkeyPatch, heads: Heads
) -> None:
    q, k = torch.randn(2, 6, 5, 16), torch.randn(2, 3, 7, 16)
    pos = torch.arange(7).int().expand(2, 3, 7)
    codes = Segment(quantise(k, 8, 16), quantise(k, 8, 16), pos)
    given = torch.arange(5).int().expand(2, 5) + 8, [codes], Geometry(0.25, window=5)
    observation = Observation(Statistic.MASS, torch.ones(2, 5), heads=heads)
    at_once = heard(q, *given, observation)
    monkeypatch.setattr(echo, "TILE_ELEMENTS", 1)
    torch.testing.assert_close(heard(q, *given, observation), at_once)
    assert (at_once[..., :4] == 0).all() and at_once.sum(-1).max() <= 5
    assert not heard(q, given[0] + 9, [codes], given[2], observation).any()


def test_layers_with_the_newest_queries_alone_hear_what_these_ask() -> None:
    model = admitted(tiny_model("gemma4_text", SUPPORTED["gemma4_text"]))
    engine = make_engine(model, "32tok", "replay")
    done = answers(engine, [Request("a", prompt(60), max_tokens=24, row=0)])["a"]
    assert done.error is None and len(done.ids) == 24
    assert all(bool(known.isfinite().all()) for _, known in held(engine))


def test_hearing_an_answer_again_changes_nothing_of_the_state_of_a_hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    model = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    steps, found = noted_steps(monkeypatch), []
    for policy in ("full", "replay"):
        engine = make_engine(model, "128tok", policy)
        engine.rows.reset(0)  # both have the state of the one model
        found.append(answers(engine, [Request("a", prompt(30), max_tokens=50, row=0)])["a"].ids)
    assert found[0] == found[1]
    assert any(step.is_again for step in steps)


def test_what_heads_with_few_slots_evict_was_repeated_whatever_the_average_holds(loaded: LoadedModel) -> None:
    needs = [[0.1, 0.9], [0.9, 0.1], [0.4, 0.4], [0.1, 0.9]]
    engine = make_engine(loaded, "64tok", "replay", head_shares=lambda slots: needs)
    done = answers(engine, [Request("a", prompt(50), max_tokens=4)])["a"]
    assert min(map(min, engine.plan.head_slots)) < done.kv.tokens_seen <= engine.plan.fewest
    assert all(bool((known[pos < 4] > 0).all()) for pos, known in held(engine))


def test_a_neighbour_that_is_not_heard_changes_nothing_of_when_an_answer_is(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = noted_steps(monkeypatch)
    fits, evicts = Request("fits", prompt(20), max_tokens=40), Request("evicts", prompt(40, 1), max_tokens=40)
    answers(make_engine(loaded, "64tok", "replay", rows=2), [fits, evicts])
    heard = [step for step in steps if step.is_again]
    assert [step.pos.shape[1] for step in heard] == [16, 16] and all(step.rows == slice(1, 2) for step in heard)


def test_positions_that_cannot_be_rotated_stay_and_end_with_the_window() -> None:
    model = admitted(tiny_model("gpt2", SUPPORTED["gpt2"]))
    assert model.window is not None
    engine = make_engine(model, "64tok", "replay")
    done = answers(engine, [Request("a", prompt(model.window - 6), max_tokens=20, row=0)])["a"]
    assert len(done.ids) == 7 and "positions are used up" in (done.cut_short or "")
    for part in engine.cache.parts:
        assert torch.equal(part.slots.pos[..., :64], part.slots.rot[..., :64])


@pytest.mark.parametrize("left", range(10))
@pytest.mark.parametrize("budget", ["40tok", "100tok"])
def test_a_row_hears_the_same_whatever_is_left_for_its_last_chunk(loaded: LoadedModel, budget: str, left: int) -> None:
    texts = [prompt(90, 1), prompt(60 + left, 2)]
    together = make_engine(loaded, budget, "replay", rows=2)
    for start in range(0, 90, chunk := together.plan.chunk):
        together.score([text[start : start + chunk] for text in texts])
    alone = make_engine(loaded, budget, "replay")
    for start in range(0, len(texts[1]), chunk):
        alone.score([texts[1][start : start + chunk]])
    for (pos, known), (other, others) in zip(held(alone), held(together, 1), strict=True):
        assert torch.equal(pos, other)
        torch.testing.assert_close(known, others, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [1, 64])
def test_with_all_of_the_window_it_hears_late_and_forgets_no_more_than_with_a_slot_less(
    loaded: LoadedModel, count: int
) -> None:
    kept = {}
    for budget in ("full", "409tok"):
        engine, text = make_engine(loaded, budget, "replay"), prompt(768)
        for start in range(0, 192, 64):
            engine.score([text[start : start + 64]])
        assert engine.rows[0].echoed == (0 if budget == "full" else 192)
        for start in range(192, 448, count):
            engine.score([text[start : start + count]])
        for start in range(448, 768, 64):
            engine.score([text[start : start + 64]])
        assert engine.rows[0].echoed == 768
        kept[budget] = {position for pos, _ in held(engine) for position in pos.flatten().tolist() if position < 350}
    assert len(kept["full"] & kept["409tok"]) > 0.8 * len(kept["409tok"])


def test_nothing_is_left_unheard_in_a_smaller_cache(loaded: LoadedModel) -> None:
    engine, policy = make_engine(loaded, "300tok", "replay"), load_policy("replay")
    answers(engine, [Request("a", prompt(60), max_tokens=70, row=0)])
    assert 0 < engine.rows[0].echoed < engine.rows[0].seen
    smaller = make_engine(loaded, "80tok", "replay").plan
    assert engine.rows.change_cache(smaller, policy, None)
    assert all(bool((known < UNHEARD).all()) for _, known in held(engine))
