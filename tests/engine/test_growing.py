"""A row that has the cache to itself: equal slots while they hold all of it, then slots by need as it grows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kvlite.cache.policy import load_policy
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request, Token
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import plan_row
from kvlite.models.loaded import LoadedModel
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few

SLOTS = 40


@pytest.fixture(scope="module", params=but_few(["llama", "gpt_oss", "lfm2"], "llama"))
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return admitted(tiny_model(request.param, {}))


def growing(loaded: LoadedModel, policy: str = "heavy-hitter", kv_dtype: str = "auto") -> Engine:
    """An engine for one row of SLOTS slots on average, whose heads need 1, 3, 9, 1, ... times as much."""
    rule = load_policy(policy)
    shares = [
        [3.0 ** ((index + head) % 3) for head in range(layer.kv_heads)]
        for index, layer in enumerate(loaded.shape.layers)
    ]
    spec = rule.cache_spec(slot_format(kv_dtype, "float32"), head_shares=lambda slots: shares)
    plan = plan_row(loaded.shape, Budget.parse(f"{SLOTS}tok"), spec, free_bytes=None)
    return Engine(loaded, plan, rule, spec.slot_format)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def lengths(engine: Engine) -> set[int]:
    return {part.num_slots for part in engine.cache.parts if part.shape.window is None}


@pytest.mark.parametrize("policy", but_few(["heavy-hitter", "replay", "window", "keydiff"], "replay"))
def test_what_the_budget_holds_is_answered_as_with_the_whole_cache(loaded: LoadedModel, policy: str) -> None:
    asked = [Request("a", prompt(0, SLOTS - 10), max_tokens=11)]  # the last is not fed
    whole = answers(make_engine(loaded, "full", "full"), asked)["a"]
    engine = growing(loaded, policy)
    found = answers(engine, asked)["a"]
    assert (found.ids, found.kv.tokens_evicted) == (whole.ids, 0)
    assert lengths(engine) == {SLOTS} and found.kv.tokens_seen == SLOTS


@pytest.mark.parametrize("policy", but_few(["heavy-hitter", "replay", "snapkv", "keyformer", "window"], "replay"))
def test_a_row_that_grows_never_exceeds_the_budget(loaded: LoadedModel, policy: str) -> None:
    engine = growing(loaded, policy)
    most = engine.plan.budget_bytes
    found: list[set[int]] = []
    for event in engine.run([Request("a", prompt(1, 30), max_tokens=140, row=0)]):
        if isinstance(event, Token):
            counts = engine.counts()
            assert counts.live_bytes <= counts.reserved_bytes <= most
            assert engine.cache.num_bytes == engine.plan.reserved_bytes - engine.plan.state_bytes
            found += [lengths(engine)] * (lengths(engine) not in found)
    assert found[0] == {SLOTS} and len(found) > 2, found
    assert all(max(now) > max(before) for before, now in pairwise(found))
    counts = engine.counts()
    assert counts.tokens_seen == 169 and 0 < counts.tokens_kept <= SLOTS
    assert counts.peak_bytes >= counts.live_bytes
    again = [Request("b", prompt(2, 20), max_tokens=5)]
    assert answers(engine, again)["b"].ids == answers(growing(loaded, policy), again)["b"].ids
    assert lengths(engine) == {SLOTS}


def test_a_prompt_finds_the_slots_that_are_best_for_its_length(loaded: LoadedModel) -> None:
    engine = growing(loaded)
    answers(engine, [Request("a", prompt(3, 2 * SLOTS - 3), max_tokens=1)])
    assert len(lengths(engine)) > 1 and max(lengths(engine)) <= 2 * SLOTS
    answers(engine, [Request("b", prompt(3, 3 * SLOTS), max_tokens=1)])
    assert 2 * SLOTS < max(lengths(engine)) <= 4 * SLOTS


@pytest.mark.parametrize("policy", ["heavy-hitter", "replay"])
def test_a_row_goes_back_to_before_it_grew(loaded: LoadedModel, policy: str) -> None:
    engine = growing(loaded, policy)
    answers(engine, [Request("a", prompt(4, 25), max_tokens=6, row=0)])
    before = engine.snapshot(0)
    more = [Request("b", prompt(5, 50), max_tokens=20, row=0)]
    first = answers(engine, more)["b"].ids
    assert len(lengths(engine)) > 1
    engine.restore(0, before)
    assert lengths(engine) == {SLOTS}
    assert answers(engine, more)["b"].ids == first


def test_a_row_that_lost_tokens_keeps_them_apart_in_another_cache(loaded: LoadedModel) -> None:
    engine = growing(loaded)
    answers(engine, [Request("a", prompt(6, 60), max_tokens=4, row=0)])
    held, larger = engine.counts().tokens_kept, growing(loaded).plan
    assert engine.change_cache(larger, engine.policy, None)
    assert engine.counts().tokens_kept >= held - 2
