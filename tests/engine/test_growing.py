"""A row that has the cache to itself: equal slots while they hold all of it, then slots by need as it grows."""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch

from kvlite.cache.cache import SlotCache
from kvlite.cache.group import PartGroup
from kvlite.cache.part import Part
from kvlite.cache.policy import load_policy
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request, Token
from kvlite.errors import OutOfMemory
from kvlite.memory.allotment import HeadShares
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import CachePlan, plan_row, stages
from kvlite.memory.shape import ModelShape
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine, shape_of
from tests.matrix import but_few

SLOTS = 40


@pytest.fixture(scope="module", params=but_few(["llama", "gpt_oss", "lfm2"], "llama"))
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return admitted(tiny_model(request.param, SUPPORTED[request.param]))


def needs_of(shape: ModelShape) -> HeadShares:
    """Needs of heads: 1, 3, 9, 1, ... times as much."""
    shares = [[3.0 ** ((index + head) % 3) for head in range(one.kv_heads)] for index, one in enumerate(shape.layers)]
    return lambda slots: shares


def growing(loaded: LoadedModel, policy: str = "heavy-hitter", budget: str = f"{SLOTS}tok") -> Engine:
    """An engine for one row, of SLOTS slots on average, whose heads have unlike needs."""
    rule = load_policy(policy)
    spec = rule.cache_spec(slot_format("auto", "float32"), head_shares=needs_of(loaded.shape))
    plan = plan_row(loaded.shape, Budget.parse(budget), spec, free_bytes=None)
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
            counts = engine.rows.counts()
            assert counts.live_bytes <= counts.reserved_bytes <= most
            assert engine.cache.num_bytes == engine.plan.reserved_bytes - engine.plan.state_bytes
            found += [lengths(engine)] * (lengths(engine) not in found)
    assert found[0] == {SLOTS} and len(found) > 2, found
    assert all(max(now) > max(before) for before, now in pairwise(found))
    counts = engine.rows.counts()
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
    before = engine.rows.snapshot(0)
    more = [Request("b", prompt(5, 50), max_tokens=20, row=0)]
    first = answers(engine, more)["b"].ids
    assert len(lengths(engine)) > 1
    engine.rows.restore(0, before)
    assert lengths(engine) == {SLOTS}
    assert answers(engine, more)["b"].ids == first


@pytest.mark.parametrize("budget", ["60tok", "100tok", "full"])
def test_a_row_that_lost_tokens_keeps_the_rest_in_a_larger_cache_or_is_fed_again(
    loaded: LoadedModel, budget: str
) -> None:
    engine = growing(loaded)
    answers(engine, [Request("a", prompt(6, 100), max_tokens=4, row=0)])
    held = engine.cache.tokens_kept(0)
    is_kept = engine.rows.change_cache(growing(loaded, budget=budget).plan, engine.rows.policy, None)
    assert is_kept == (budget != "full")
    assert engine.cache.tokens_kept(0) == (held if is_kept else 0)


def test_what_is_refused_while_a_row_grows_leaves_the_row(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = SlotCache.__init__

    def refuse(cache: SlotCache, shape: ModelShape, plan: CachePlan, *args: Any) -> None:
        if plan.until != SLOTS:
            raise OutOfMemory("there is no more")
        opened(cache, shape, plan, *args)

    found = []
    for is_refused in (False, True):
        engine = growing(loaded)
        engine.rows.reset(0)  # of a state that engines share
        answers(engine, [Request("a", prompt(7, 30), max_tokens=4, row=0)])
        if is_refused:
            with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
                patch.setattr(SlotCache, "__init__", refuse)
                answers(engine, [Request("c", prompt(9, 50), max_tokens=1, row=0)])
        kept = engine.rows.counts().tokens_kept
        found.append((kept, answers(engine, [Request("b", prompt(8, 4), max_tokens=4, row=0)])["b"].ids))
    assert found[0] == found[1]


def test_of_caches_that_take_each_others_place_none_is_there_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = admitted(tiny_model("gemma2", SUPPORTED["gemma2"]))
    engine, policy = make_engine(loaded, "24tok", "replay"), load_policy("replay")
    answers(engine, [Request("a", prompt(1, 20), max_tokens=4, row=0)])
    before, larger = engine.plan, make_engine(loaded, "60tok", "replay").plan
    made, opened = [(before.slots, weakref.ref(engine.cache.parts[0].group))], PartGroup.__init__

    def noted(group: PartGroup, *args: Any) -> None:
        slots = args[3].slots
        assert all(ref() is None for other, ref in made if other != slots)
        if slots == larger.slots and made[1:]:
            raise MemoryError
        opened(group, *args)
        made.append((slots, weakref.ref(group)))

    monkeypatch.setattr(PartGroup, "__init__", noted)
    with pytest.raises(OutOfMemory):
        engine.rows.change_cache(larger, policy, None)
    assert engine.plan == before and [slots for slots, _ in made[:2]] == [before.slots, larger.slots]


def test_a_window_hides_tokens_that_a_larger_cache_has_room_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for is_promised in (True, False):
        loaded = admitted(tiny_model("gemma2", {**SUPPORTED["gemma2"], "sliding_window": 40}))
        engine, policy = make_engine(loaded, "16tok", "replay"), load_policy("replay")
        engine.score([prompt(2, 4)])
        for token in prompt(3, 70):
            engine.score([(token,)])
        assert engine.rows.change_cache(make_engine(loaded, "60tok", "replay").plan, policy, None)
        if not is_promised:
            monkeypatch.setattr(Part, "_before", lambda part, mapping, window: None)
        found.append(torch.stack([engine.score([(token,)])[0, -1] for token in prompt(4, 16)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", but_few(sorted(SUPPORTED), "llama"))
def test_no_stage_takes_more_than_the_budget(name: str) -> None:
    shape = shape_of(tiny_model(name, SUPPORTED[name]))
    for budget in ("50tok", "600kB"):
        spec = load_policy("replay").cache_spec(slot_format("auto", "float32"), head_shares=needs_of(shape))
        plans = stages(plan_row(shape, Budget.parse(budget), spec, free_bytes=None))
        assert all(plan.reserved_bytes <= plan.budget_bytes == plans[0].budget_bytes for plan in plans)
        for plan in plans[:-1]:
            full = [heads for layer, heads in zip(shape.layers, plan.head_slots, strict=True) if layer.kind == "full"]
            assert max(map(max, full)) <= (plan.until or 0)
