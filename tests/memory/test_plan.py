"""What a budget buys, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.cache.policies import Pyramid, Replay
from kvlite.errors import BudgetTooSmall, DoesNotFit, UsageError
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS
from kvlite.memory.plan import CachePlan, CacheSpec, chunk_tokens, plan_cache
from kvlite.memory.prediction import Weights, weight_term
from kvlite.memory.shape import LayerShape, ModelShape

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
FP16 = FORMATS["float16"]


def model(layers: list[LayerShape], window: int | None = None, positions: str = "rotary") -> ModelShape:
    return ModelShape("test", tuple(layers), 64, 8, 100, 128, window, positions, None, "float16")  # type: ignore[arg-type]


def plan(shape: ModelShape, budget: str | Budget, *, rows: int = 1, free: int | None = None, protected: int = 1,
         evicts: bool = True, state: int = 4) -> CachePlan:  # fmt: skip
    wanted = budget if isinstance(budget, Budget) else Budget.parse(budget)
    return plan_cache(shape, wanted, CacheSpec(FP16, state, protected, evicts), rows=rows, free_bytes=free)


attention = st.builds(
    LayerShape,
    st.just("full"),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([8, 80, 192]),
    st.sampled_from([8, 128]),
    st.none(),
    st.sampled_from([0, 1000]),
)
sliding = st.builds(LayerShape, st.just("sliding"), st.just(2), st.just(64), st.just(64), st.integers(1, 300))
state_only = st.builds(LayerShape, st.just("state"), st.just(0), st.just(0), st.just(0), st.none(), st.just(12_345))
shapes = st.builds(
    model,
    st.tuples(attention, st.lists(st.one_of(attention, sliding, state_only), max_size=3)).map(lambda x: [x[0], *x[1]]),
    st.one_of(st.none(), st.integers(2, 5000)),
    st.sampled_from(["rotary", "learned", "none"]),
)


@given(shapes, st.integers(1, 10**8), st.integers(1, 5), st.sampled_from([0, 4]))
def test_the_plan_is_the_largest_inside_the_budget(shape: ModelShape, size: int, rows: int, state: int) -> None:
    try:
        found = plan(shape, Budget(BudgetKind.BYTES, size), rows=rows, state=state)
    except BudgetTooSmall:
        return
    assert found.reserved_bytes <= size == found.budget_bytes
    if found.slots < CacheSpec(FP16, state, 1).most_slots(shape):
        assert found.capped_by is None
        assert plan(shape, f"{found.slots + 1}tok", rows=rows, state=state).reserved_bytes > size


@given(shapes, st.integers(1, 10**8), st.integers(0, 10**7), st.integers(1, 3))
def test_a_larger_budget_never_keeps_less(shape: ModelShape, size: int, more: int, rows: int) -> None:
    def slots(amount: int) -> int:
        try:
            return plan(shape, Budget(BudgetKind.BYTES, amount), rows=rows).slots
        except BudgetTooSmall:
            return 0

    assert slots(size) <= slots(size + more)


@given(shapes, st.integers(1, 10**5), st.integers(1, 3), st.integers(1, 200))
def test_the_smallest_budget_named_works(shape: ModelShape, size: int, rows: int, protected: int) -> None:
    try:
        plan(shape, Budget(BudgetKind.BYTES, size), rows=rows, protected=protected)
    except BudgetTooSmall as refused:
        message = str(refused)
        if "smallest that works" in message:
            named = message.split("smallest that works is ")[1].split(" (")[0]
            assert plan(shape, named, rows=rows, protected=protected).slots >= protected


@given(shapes, st.integers(1, 2000), st.integers(1, 4), st.sampled_from([0, 4, 12]))
def test_the_lines_are_the_tensors_the_cache_allocates(shape: ModelShape, tokens: int, rows: int, state: int) -> None:
    found = plan(shape, f"{tokens}tok", rows=rows, state=state)
    expected = sum(rows * layer.state_bytes for layer in shape.layers)
    for layer, heads in zip(shape.layers, found.head_slots, strict=True):
        k_v, pos_rot = (layer.k_dim + layer.v_dim) * 2, 2 * 4
        expected += rows * sum(slots + 1 for slots in heads) * (k_v + pos_rot + state)
        assert heads == (min(found.slots, layer.window or found.slots),) * layer.kv_heads
    assert found.reserved_bytes == expected
    assert found.reserved_bytes == (
        found.k_v_bytes + found.policy_state_bytes + found.position_bytes + found.staging_bytes + found.state_bytes
    )


@given(shapes, st.integers(1, 10**6), st.sampled_from(["auto", "40%"]))
def test_shares_of_free_memory_stay_inside_it(shape: ModelShape, free: int, budget: str) -> None:
    try:
        found = plan(shape, budget, free=free)
    except BudgetTooSmall:
        return
    assert found.reserved_bytes <= found.budget_bytes <= free * (0.9 if budget == "auto" else 0.4)


def pyramid_spec(protected: int, beta: int, state: int = 4) -> CacheSpec:
    return CacheSpec(FP16, state, protected, layer_rule=Pyramid(beta=beta).layer_slots)


@given(shapes, st.integers(1, 10**8), st.integers(1, 3), st.integers(1, 40), st.integers(1, 30))
def test_layers_of_any_size_stay_inside_the_budget_and_use_it(
    shape: ModelShape, size: int, rows: int, protected: int, beta: int
) -> None:
    spec = pyramid_spec(protected, beta)
    try:
        found = plan_cache(shape, Budget(BudgetKind.BYTES, size), spec, rows=rows, free_bytes=None)
    except BudgetTooSmall as refused:
        if "smallest that works" in str(refused):
            named = str(refused).split("smallest that works is ")[1].split(" (")[0]
            assert plan_cache(shape, Budget.parse(named), spec, rows=rows, free_bytes=None).fewest >= protected
        return
    full = [
        heads[0]
        for heads, layer in zip(found.head_slots, shape.layers, strict=True)
        if layer.kv_heads and not layer.window
    ]
    cap = spec.most_slots(shape)
    assert found.reserved_bytes <= size
    assert found.fewest == min(full) >= protected and max(full) <= cap
    assert full == sorted(full, reverse=True)
    assert 0 <= sum(full) - found.slots * len(full) < len(full)  # their average, each rounded up
    assert found.chunk == chunk_tokens(found.fewest)
    if found.slots < cap:
        more = Budget(BudgetKind.TOKENS, found.slots + 1)
        assert plan_cache(shape, more, spec, rows=rows, free_bytes=None).reserved_bytes > size
    else:
        assert set(full) == {cap}


def test_a_pyramid_falls_in_a_straight_line_from_almost_twice_the_mean_to_a_twentieth() -> None:
    layers = [LayerShape("full", 2, 64, 64)] * 5
    found = plan_cache(model(layers), Budget.parse("1032tok"), pyramid_spec(1, beta=20), free_bytes=None)
    assert [slots - 32 for slots, _ in found.head_slots] == [1950, 1475, 1000, 525, 50]


def test_layers_that_would_exceed_the_window_leave_the_rest_to_the_others() -> None:
    layers = [LayerShape("full", 2, 64, 64)] * 3
    found = plan_cache(model(layers, 1000), Budget.parse("632tok"), pyramid_spec(1, beta=20), free_bytes=None)
    assert found.head_slots == ((800, 800), (632, 632), (464, 464))


def test_a_layer_that_slides_takes_no_part_in_the_pyramid() -> None:
    full, sliding = LayerShape("full", 2, 64, 64), LayerShape("sliding", 2, 64, 64, 90)
    found = plan_cache(
        model([full, sliding, full, sliding]), Budget.parse("132tok"), pyramid_spec(1, beta=5), free_bytes=None
    )
    assert [heads[0] for heads in found.head_slots] == [32 + 180, 90, 32 + 20, 90]


FULL = model([LayerShape("full", 2, 64, 64)], 1000)
SLOT = 2 * ((64 + 64) * 2 + 4 + 8)


@pytest.mark.parametrize(
    ("slots", "limit", "tokens"),
    [(1, 512, 1), (4, 512, 1), (16, 512, 4), (2048, 512, 512), (10**6, 512, 512), (10**6, 4096, 512), (10**6, 64, 64)],
)
def test_a_chunk_is_a_quarter_of_the_slots(slots: int, limit: int, tokens: int) -> None:
    assert chunk_tokens(slots, limit) == tokens


@pytest.mark.parametrize(
    ("slots", "window", "tokens"), [(240, 8192, 480), (4096, 8192, 512), (240, 1024, 128), (800, 1024, 200)]
)
def test_a_policy_that_echoes_reads_twice_as_many_tokens_at_once_as_there_are_slots(
    slots: int, window: int, tokens: int
) -> None:
    shape = model([LayerShape("full", 2, 64, 64)], window)
    found = plan_cache(shape, Budget.parse(f"{slots}tok"), Replay().cache_spec(FP16), free_bytes=None)
    assert (found.slots, found.chunk) == (slots, tokens)  # at most what stays free for re-rotation, or a quarter


def test_rotary_models_that_evict_keep_an_eighth_of_the_window_free_and_at_least_a_chunk() -> None:
    def most(limit: int = 512, evicts: bool = True, positions: str = "rotary") -> int:
        shape = model([LayerShape("full", 2, 64, 64)], 1000, positions)
        return CacheSpec(FP16, 4, 1, evicts, limit).most_slots(shape)

    assert most() == 800
    assert [most(limit) for limit in (150, 125, 64, 1)] == [850, 875, 875, 875]
    assert most(evicts=False) == most(positions="learned") == 1000


def test_the_window_caps_what_bytes_would_buy_and_says_so() -> None:
    found = plan(FULL, "2GB")
    assert (found.slots, found.chunk, found.capped_by, found.budget_bytes) == (800, 200, "window", 2 * 10**9)


def test_tokens_are_exact_up_to_the_window() -> None:
    assert plan(FULL, "123tok").slots == 123
    assert plan(FULL, "123tok").budget_bytes == 124 * SLOT
    assert plan(FULL, "8000tok").slots == 800


def test_auto_takes_nine_tenths_of_what_is_free_or_the_whole_window() -> None:
    assert plan(FULL, "auto", free=100 * SLOT).slots == 89
    assert plan(FULL, "auto", free=10**9).budget_bytes == 801 * SLOT
    assert plan(FULL, "full", free=10**9).slots == 800


def test_more_than_is_free_does_not_fit_and_what_does_is_named() -> None:
    for budget in ("1GB", "full", "700tok"):
        with pytest.raises(DoesNotFit, match="what fits is"):
            plan(FULL, budget, free=100_000)


def test_a_share_of_unknown_memory_is_refused() -> None:
    for budget in ("auto", "25%"):
        with pytest.raises(UsageError, match="give a size"):
            plan(FULL, budget)


def test_the_whole_window_of_a_model_without_one_is_refused() -> None:
    with pytest.raises(UsageError, match="give a size"):
        plan(model([LayerShape("full", 2, 64, 64)]), "full")


def test_more_protected_tokens_than_the_window_holds_are_refused() -> None:
    with pytest.raises(BudgetTooSmall, match="--kv-policy"):
        plan(FULL, "2GB", protected=900)


@pytest.mark.parametrize(
    ("method", "stored", "device", "expected"),
    [
        ("mxfp4", {"BF16": 1000, "U8": 1700}, "cpu", 1000 + 3200 * 2),
        ("mxfp4", {"BF16": 1000, "U8": 1700}, "cuda", 2700),
        ("fp8", {"BF16": 1000, "F8_E4M3": 500}, "cpu", 2000),
        ("fp8", {"BF16": 1000, "F8_E4M3": 500}, "cuda", 1500),
        ("compressed-tensors", {"BF16": 1000, "I32": 100}, "cuda", 1400),
        ("awq", {"F16": 1000, "I32": 100}, "cpu", 1100),
    ],
)
def test_weights_that_are_unpacked_when_loaded_count_unpacked(
    method: str, stored: dict[str, int], device: str, expected: int
) -> None:
    config = json.loads((CONFIGS / "llama-2-7b.json").read_text()) | {"quantization_config": {"quant_method": method}}
    shape = ModelShape.from_config(config)
    weights = Weights(sum(stored.values()), 1, stored)
    assert weight_term(shape, weights, "none", device).predicted_bytes == expected
