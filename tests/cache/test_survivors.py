"""Who stays, and what is attended to: the cache against lists of tokens in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kvlite.cache.cache import SlotCache
from kvlite.cache.layer import Layer
from kvlite.cache.policies import (
    H2O,
    TOVA,
    Full,
    HeavyHitter,
    KeyDiff,
    Keyformer,
    Pyramid,
    Replay,
    Scissorhands,
    SnapKV,
    Window,
)
from kvlite.cache.policy import Policy, policy_names
from tests.cache import simulation
from tests.cache.driving import (
    Driver,
    Span,
    Stream,
    attention_layer,
    in_order,
    make_cache,
    model_shape,
    positions,
    random_streams,
    statistics,
)
from tests.cache.simulation import Rule
from tests.matrix import but_few
from tests.parity.compare import assert_parity

POLICIES: dict[str, tuple[Policy, Rule]] = {
    "heavy-hitter": (HeavyHitter(), simulation.heavy_hitter()),
    "heavy-hitter, a plain sum": (HeavyHitter(decay=1.0, pooled=1), simulation.heavy_hitter(decay=1.0, pooled=1)),
    "heavy-hitter, decay": (HeavyHitter(decay=0.9, pooled=1), simulation.heavy_hitter(decay=0.9, pooled=1)),
    "heavy-hitter, most of a group": (HeavyHitter(heads="max"), simulation.heavy_hitter(heads="max")),
    "replay, nothing asked again": (Replay(), simulation.REPLAY),
    "h2o": (H2O(), simulation.H2O),
    "scissorhands": (Scissorhands(), simulation.scissorhands()),
    "scissorhands, short history": (Scissorhands(observed=11), simulation.scissorhands(history=11)),
    "keyformer": (Keyformer(), simulation.keyformer()),
    "keyformer, short ramp": (Keyformer(seed=7, ramp=30), simulation.keyformer(seed=7, ramp=30)),
    "tova": (TOVA(), simulation.TOVA),
    "snapkv": (SnapKV(), simulation.snapkv()),
    "snapkv, short window": (SnapKV(observed=5, pooled=3), simulation.snapkv(window=5, pooled=3)),
    "pyramid": (Pyramid(beta=3), simulation.snapkv()),
    "keydiff": (KeyDiff(), simulation.KEYDIFF),
    "window": (Window(), simulation.WINDOW),
}
SCHEDULES = {
    "token by token": [1] * 60,
    "prompt longer than the slots": [20] + [1] * 40,
    "chunks": [16, 16, 16] + [1] * 12,
    "uneven": [13, 29, 1, 1, 7, 9],
}
SLOTS = 18
GROUP = 3
SHAPE = model_shape(
    attention_layer(),
    attention_layer(window=7),  # fewer slots than a full layer, and shorter than the chunks
    attention_layer(window=30, v_dim=5),  # as many slots, which do not hold the window
    attention_layer(kv_heads=1, window=3),
    attention_layer(kv_heads=1),
)


class Twins:
    """Row i of a cache beside the simulation of conversation i; `feed` compares outputs, `compare` what is held."""

    def __init__(
        self,
        cache: SlotCache,
        rule: Rule,
        streams: Sequence[list[Stream]],
        pins: Sequence[Sequence[Span]] = (),
    ) -> None:
        self.cache = cache
        self.driver = Driver(cache, streams, pins)
        self.simulated = [
            [
                self._simulated(layer, rule, pins[row] if pins else (), streams[row][index])
                for index, layer in cache.layers.items()
            ]
            for row in range(cache.plan.rows)
        ]

    def _simulated(self, layer: Layer, rule: Rule, pins: Sequence[Span], stream: Stream) -> simulation.Layer:
        """A layer by itself."""
        slots = in_order(layer, [[part.num_slots] * part.shape.kv_heads for part in layer.parts])
        return simulation.Layer(layer.index, rule, slots, layer.shape.window, pins, stream)

    def feed(self, counts: Sequence[int], first: int = 0) -> None:
        outs = self.driver.feed(counts, first)
        for i, count in enumerate(counts):
            if not count:
                continue
            for index, layer in enumerate(self.simulated[first + i]):
                expected = torch.tensor(layer.feed(count), dtype=torch.float64)
                assert_parity(f"out of layer {index}, row {first + i}", outs[index][i], expected, 2e-6)
        self.compare()

    def compare(self) -> None:
        for row, layers in enumerate(self.simulated):
            for index, layer in enumerate(layers):
                expected = [{token.position: token.known for token in head.held} for head in layer.heads]
                name = f"layer {index}, row {row}"
                assert positions(self.cache.layers[index], row) == [set(head) for head in expected], name
                for actual, head in zip(statistics(self.cache.layers[index], row), expected, strict=True):
                    assert actual == pytest.approx({p: head[p] for p in actual}, rel=1e-4, abs=1e-6), name


def test_every_policy_that_evicts_has_a_simulation() -> None:
    assert {policy.name for policy, _ in POLICIES.values()} == {*policy_names()} - {"full"}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("policy", POLICIES)
def test_survivors_are_those_of_the_simulation(policy: str, schedule: list[int]) -> None:
    chosen, rule = POLICIES[policy]
    cache = make_cache(SHAPE, SLOTS, chosen)
    twins = Twins(cache, rule, [random_streams(SHAPE, GROUP, sum(schedule), seed=1)])
    for count in schedule:
        twins.feed([count])
    assert all(len(head) == part.num_slots for part in cache.parts for head in positions(part))


@pytest.mark.parametrize("policy", POLICIES)
def test_pinned_tokens_stay_and_the_others_compete_for_what_is_left(policy: str) -> None:
    chosen, rule = POLICIES[policy]
    cache = make_cache(SHAPE, SLOTS, chosen)
    pins = [(6, 9), (21, 23)]
    twins = Twins(cache, rule, [random_streams(SHAPE, GROUP, 60, seed=2)], [pins])
    for count in [17, 13, 1, 1, 1, 12, 4] + [1] * 11:
        twins.feed([count])
    assert all({6, 7, 8, 21, 22} <= head for head in positions(cache.layers[0]))


def test_without_eviction_only_what_a_window_has_passed_makes_room() -> None:
    cache = make_cache(SHAPE, 60, Full())
    twins = Twins(cache, simulation.FULL, [random_streams(SHAPE, GROUP, 60, seed=3)])
    for count in [20, 1, 1, 16, 4] + [1] * 18:
        twins.feed([count])
    assert positions(cache.layers[0]) == [set(range(60))] * 2
    assert positions(cache.layers[1]) == [set(range(53, 60))] * 2


@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_tiny_caches_follow_the_same_rule(policy: str, spare: int) -> None:
    chosen, rule = POLICIES[policy]
    slots = chosen.min_slots() + spare
    shape = model_shape(attention_layer(dim=4), attention_layer(dim=4, window=2), attention_layer(dim=4, window=1))
    twins = Twins(make_cache(shape, slots, chosen), rule, [random_streams(shape, 1, 30, seed=slots)])
    for count in [1, 1, 3, 1, 1, 9, 1, 5, 1, 1, 1]:
        twins.feed([count])


UNEQUAL = model_shape(
    attention_layer(4, 4),
    attention_layer(2, 4, window=9),
    attention_layer(3, 4),
)
AFTER_A_PROMPT = [30, 1, 1, 1, 20, *[1] * 7]
NEEDS = ((9, 0.1, 9, 1), (), (0.1, 0.1, 4))
"""Heads of a layer between others, and a window that takes no part."""


@pytest.mark.parametrize("schedule", but_few([SCHEDULES["uneven"], AFTER_A_PROMPT], AFTER_A_PROMPT))
@pytest.mark.parametrize("policy", POLICIES)
def test_heads_with_slots_of_their_own_are_each_like_a_head_alone(policy: str, schedule: list[int]) -> None:
    chosen, rule = POLICIES[policy]
    cache = make_cache(UNEQUAL, 28, chosen, needs=NEEDS)
    assert any(len(layer.parts) > 1 for layer in cache.layers.values()) == (rule.heads != "layer")
    twins = Twins(cache, rule, [random_streams(UNEQUAL, 2, sum(schedule), seed=1)])
    for count in schedule:
        twins.feed([count])


@pytest.mark.parametrize("policy", but_few(POLICIES, "heavy-hitter", "pyramid"))
def test_rows_with_pins_whose_heads_have_slots_of_their_own_follow_the_simulation(policy: str) -> None:
    chosen, rule = POLICIES[policy]
    streams = [random_streams(UNEQUAL, 2, 70, seed) for seed in (4, 5, 6)]
    pins = [[(5, 7)], [], [(2, 14), (30, 31)]]
    twins = Twins(make_cache(UNEQUAL, 40, chosen, rows=3, needs=NEEDS), rule, streams, pins)
    for counts in [(9, 0, 16), (9, 3, 16), (0, 1, 16), (16, 0, 1), (16, 14, 1), (1, 16, 0), (1, 1, 1), (1, 1, 1)]:
        twins.feed(counts)


BATCH = [(9, 0, 16), (9, 3, 16), (0, 1, 16), (5, 0, 1), (1, 1, 1), (1, 1, 0), (1, 0, 1), (1, 14, 1), (12, 2, 0)]
"""Tokens per row and step: rows fill at different times, some are idle, some are padded."""


@pytest.mark.parametrize("policy", POLICIES)
def test_each_row_of_a_batch_follows_its_own_simulation(policy: str) -> None:
    chosen, rule = POLICIES[policy]
    streams = [random_streams(SHAPE, GROUP, 70, seed) for seed in (4, 5, 6)]
    pins = [[(5, 7)], [], [(4, 6), (30, 31)]]
    twins = Twins(make_cache(SHAPE, SLOTS, chosen, rows=3), rule, streams, pins)
    for counts in BATCH + [(1, 1, 1)] * 8:
        twins.feed(counts)


@pytest.mark.parametrize("policy", ["heavy-hitter, decay", "keyformer", "tova", "snapkv, short window", "keydiff"])
def test_a_row_alone_equals_the_row_in_a_batch(policy: str) -> None:
    chosen, _ = POLICIES[policy]
    streams = [random_streams(SHAPE, GROUP, 70, seed) for seed in (7, 8, 9)]
    together = Driver(make_cache(SHAPE, SLOTS, chosen, rows=3), streams)
    outs = [together.feed(counts) for counts in BATCH]
    for row in range(3):
        alone = Driver(make_cache(SHAPE, SLOTS, chosen), [streams[row]])
        for step, counts in enumerate(BATCH):
            if not counts[row]:
                continue
            for index, out in enumerate(alone.feed([counts[row]])):
                assert_parity(f"row {row}, step {step}, layer {index}", outs[step][index][row], out[0], 2e-6)
        for index, part in enumerate(together.cache.parts):
            assert positions(part, row) == positions(alone.cache.parts[index])


def test_steps_that_name_some_rows_leave_the_others_alone() -> None:
    chosen, rule = POLICIES["heavy-hitter"]
    streams = [random_streams(SHAPE, GROUP, 70, seed) for seed in (10, 11, 12)]
    twins = Twins(make_cache(SHAPE, SLOTS, chosen, rows=3), rule, streams)
    for first, counts in [(0, (16,)), (1, (16, 7)), (0, (8, 0)), (2, (12,)), (1, (1, 1)), (0, (1,)), (0, (1, 1, 1))]:
        twins.feed(counts, first)
