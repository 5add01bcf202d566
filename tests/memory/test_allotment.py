"""Slots per KV head: what heads need, on a coarse grid, in the bytes of equal heads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.cache.policies import TOVA, HeavyHitter, Pyramid, Window
from kvlite.cache.policy import Policy, load_policy
from kvlite.errors import BudgetTooSmall, UsageError
from kvlite.memory.allotment import LEAST_SHARE, MOST_LENGTHS
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS
from kvlite.memory.plan import CachePlan, chunk_tokens, plan_cache
from kvlite.memory.shape import LayerShape, ModelShape

FULL, SLIDING = LayerShape("full", 3, 64, 64), LayerShape("sliding", 3, 64, 64, 40)
Needs = Sequence[Sequence[float]]


def model(*layers: LayerShape, window: int | None = None) -> ModelShape:
    return ModelShape("test", layers, 64, 6, 100, 128, window, "rotary", None, "float16")


def plan(shape: ModelShape, budget: str | Budget, policy: Policy, needs: Needs | None) -> CachePlan:
    spec = policy.cache_spec(FORMATS["float16"], head_shares=None if needs is None else lambda slots: needs)
    wanted = budget if isinstance(budget, Budget) else Budget.parse(budget)
    return plan_cache(shape, wanted, spec, free_bytes=None)


need = st.one_of(st.sampled_from((0.0, 1.0)), st.floats(0.001, 50))
needs_of_four = st.lists(st.lists(need, min_size=3, max_size=3), min_size=4, max_size=4)
MIXED = model(FULL, SLIDING, FULL, FULL, window=3000)


@given(needs_of_four, st.integers(1, 6_000_000), st.integers(0, 10**6))
def test_heads_stay_inside_the_bytes_and_use_them(needs: Needs, size: int, more: int) -> None:
    policy = HeavyHitter()

    def of(amount: int) -> CachePlan | None:
        try:
            return plan(MIXED, Budget(BudgetKind.BYTES, amount), policy, needs)
        except BudgetTooSmall:
            return None

    found, larger = of(size), of(size + more)
    if found is None:
        return
    full = [slots for index in (0, 2, 3) for slots in found.head_slots[index]]
    assert found.reserved_bytes <= size
    assert found.head_slots[1] == (min(40, found.slots),) * 3  # what slides takes no part
    assert 0 <= found.slots * len(full) - sum(full) < len(full)  # their average, each rounded up
    least = max(policy.min_slots(), found.slots // LEAST_SHARE)
    assert all(least <= slots <= found.most_slots for slots in full)
    assert all(len(set(heads)) <= MOST_LENGTHS for heads in found.head_slots)
    assert found.chunk == chunk_tokens(found.slots) and found.fewest == found.slots
    uniform = plan(MIXED, Budget(BudgetKind.BYTES, size), policy, None)
    assert uniform.slots <= found.slots <= uniform.slots + 1
    assert larger is not None and larger.slots >= found.slots
    assert all(
        more >= slots
        for heads, others in zip(found.head_slots, larger.head_slots, strict=True)
        for slots, more in zip(heads, others, strict=True)
    )


@given(st.floats(0.001, 1000), st.integers(20, 2500), st.sampled_from(["heavy-hitter", "pyramid", "tova"]))
def test_equal_needs_are_the_plan_without_any(need: float, slots: int, policy: str) -> None:
    chosen = load_policy(policy)
    try:
        found = plan(MIXED, f"{slots}tok", chosen, [[need] * 3] * 4)
    except BudgetTooSmall:
        return
    assert found == plan(MIXED, f"{slots}tok", chosen, None)


def test_a_head_that_needs_more_has_more_and_only_ratios_count() -> None:
    needs = [[0.1, 0.9, 0.1], [], [0.3, 0.3, 0.3], [0.001, 0.001, 0.001]]
    found = plan(MIXED, "300tok", HeavyHitter(), needs)
    few, many, _ = found.head_slots[0]
    assert found.head_slots[0] == (few, many, few)
    assert 4 < many / few < 12 and few < found.head_slots[2][0] < many
    assert found.head_slots[3] == (300 // LEAST_SHARE,) * 3
    assert plan(MIXED, "300tok", HeavyHitter(), [[7 * need for need in heads] for heads in needs]) == found


def test_a_budget_that_holds_the_window_gives_every_head_the_window() -> None:
    needs = [[1, 5, 9]] * 4
    found = plan(MIXED, "full", HeavyHitter(), needs)
    assert found == plan(MIXED, "full", HeavyHitter(), None)
    nearly = plan(MIXED, f"{found.most_slots - 1}tok", HeavyHitter(), needs)
    assert max(nearly.head_slots[0]) == found.most_slots


def test_needs_are_asked_for_at_the_average_that_the_bytes_buy() -> None:
    asked: list[int] = []

    def shares(slots: int) -> Needs:
        asked.append(slots)
        return [[1, 2, 4]] * 4

    for name in ("float16", "int4"):
        plan_cache(
            MIXED, Budget.parse("200kB"), Window().cache_spec(FORMATS[name], head_shares=shares), free_bytes=None
        )
    assert len(asked) == 2 and asked[1] > 3 * asked[0]


def test_what_a_policy_does_not_let_differ_stays_equal() -> None:
    needs = [[1, 2, 9], [], [1, 1, 1], [2, 3, 4]]
    stopping = HeavyHitter().cache_spec(FORMATS["float16"], on_full="stop", head_shares=lambda slots: needs)
    assert stopping.head_shares is None and load_policy("full").cache_spec(FORMATS["int8"]).head_shares is None
    by_layer = plan(MIXED, "100tok", TOVA(), needs).head_slots
    assert [len(set(heads)) for heads in by_layer] == [1, 1, 1, 1] and by_layer[0] > by_layer[3] > by_layer[2]
    pyramid = plan(MIXED, "400tok", Pyramid(), needs).head_slots
    for heads, equal in zip(pyramid, plan(MIXED, "400tok", Pyramid(), None).head_slots, strict=True):
        assert 0 <= sum(equal) - sum(heads) < len(heads)
    assert len(set(pyramid[0])) == 2


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        ([[1, 1, 1]] * 3, "given for 3 layers; the model has 4"),
        ([[1, 1, 1]] * 3 + [[1, 1]], "layer 3 has 3 KV heads"),
        ([[1, 1, -1]] * 4, "numbers from 0 on"),
        ([[1, 1, float("nan")]] * 4, "numbers from 0 on"),
    ],
)
def test_needs_that_are_not_those_of_the_model_are_refused(needs: Needs, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        plan(MIXED, "100tok", Window(), needs)
