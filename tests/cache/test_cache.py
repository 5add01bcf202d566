"""What holds of the cache whatever is fed to it, in whatever chunks, to however many rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kvlite.cache.cache import SlotCache
from kvlite.cache.observing import observe
from kvlite.cache.policies import H2O, TOVA, Full, HeavyHitter, Pyramid, Scissorhands, SnapKV, Window
from kvlite.cache.policy import Candidates, Policy, load_policy, policy_names
from kvlite.cache.rotation import Rotation
from kvlite.memory.allotment import of_layers
from kvlite.memory.counts import KVCounts
from kvlite.memory.format import FORMATS
from kvlite.memory.shape import LayerShape, ModelShape
from kvlite_kernels.reference import Segment, attend
from tests.cache.driving import (
    CPU,
    Driver,
    Needs,
    Span,
    as_stored,
    attention_layer,
    geometry,
    make_cache,
    make_plan,
    model_shape,
    positions,
    random_streams,
    rotated,
)
from tests.parity.compare import assert_parity

EVICTING = [policy for name in policy_names() if (policy := load_policy(name)).evicts]
POLICIES: tuple[Policy, ...] = (
    *EVICTING,
    HeavyHitter(sinks=1, grace=1, pooled=1, heads="max"),
    HeavyHitter(sinks=0, recent_share=0.5, decay=0.9),
    H2O(sinks=3),
    Scissorhands(newest=2, observed=9),
    SnapKV(observed=4),
    Pyramid(beta=2),
    Window(sinks=2),
)


@dataclass(frozen=True)
class Scenario:
    """A cache and what is fed to it: `steps` of tokens per row; `pins` as each row's request gives them.

    Heads have slots by their `needs`, all as many where there are none.
    """

    policy: Policy
    slots: int
    shape: ModelShape
    group: int
    pins: tuple[tuple[Span, ...], ...]
    steps: tuple[tuple[int, ...], ...]
    stored: str
    needs: Needs | None = None

    @property
    def rows(self) -> int:
        return len(self.pins)

    def driver(self, rotations: dict[int, Rotation] | None = None) -> Driver:
        """The cache, empty, and what will be fed; as long again for tests that go on."""
        length = 2 * sum(max(step) for step in self.steps) + 40
        streams = [random_streams(self.shape, self.group, length, seed) for seed in range(self.rows)]
        cache = make_cache(self.shape, self.slots, self.policy, self.rows, self.stored, self.needs)
        return Driver(cache, streams, self.pins, rotations or {})

    def played(self) -> Iterator[Driver]:
        """The cache before the first step and after every one."""
        driver = self.driver()
        yield driver
        for counts in self.steps:
            driver.feed(counts)
            yield driver


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    policy = draw(st.sampled_from(POLICIES))
    slots = policy.min_slots() + draw(st.integers(0, 12))
    dim = draw(st.sampled_from((4, 6)))
    windows = draw(st.lists(st.one_of(st.none(), st.integers(1, slots + 5)), max_size=2))
    layers = [attention_layer(draw(st.integers(1, 3)), dim, window) for window in (None, *windows)]
    rows = draw(st.integers(1, 3))
    allotment = zip(of_layers(layers, slots, 2**31, policy.layer_slots), layers, strict=True)
    smallest = min(held for held, layer in allotment if layer.window is None)
    room = smallest - policy.sinks - policy.recent(smallest) - 1
    pins = []
    for _ in range(rows):
        size = draw(st.integers(0, max(0, room)))
        start = draw(st.integers(0, 25))
        pins.append(((start, start + size),) if size else ())
    tokens = st.one_of(st.just(1), st.integers(0, 20))
    steps = draw(st.lists(st.tuples(*[tokens] * rows).filter(any), min_size=1, max_size=9))
    group, stored = draw(st.sampled_from((1, 3))), draw(st.sampled_from(("float32", "int8", "int4")))
    needs = draw(st.one_of(st.none(), needs_of(layers)))
    return Scenario(policy, slots, model_shape(*layers), group, tuple(pins), tuple(steps), stored, needs)


def needs_of(layers: Sequence[LayerShape]) -> st.SearchStrategy[Needs]:
    """Needs of the heads of `layers`, from none to many times those of others."""
    need = st.sampled_from((0.0, 0.1, 0.5, 1.0, 1.0, 3.0, 20.0))
    return st.tuples(*(st.lists(need, min_size=layer.kv_heads, max_size=layer.kv_heads) for layer in layers))


@given(scenarios())
def test_bytes_and_addresses_never_change(scenario: Scenario) -> None:
    seen = {
        (driver.cache.num_bytes, *(tensor.data_ptr() for tensor in driver.cache.tensors()))
        for driver in scenario.played()
    }
    assert len(seen) == 1


@given(scenarios())
def test_nothing_is_evicted_while_a_slot_is_free_and_no_head_holds_more_than_its_slots(scenario: Scenario) -> None:
    for driver in scenario.played():
        for part in driver.cache.parts:
            for row, seen in enumerate(driver.seen):
                assert [len(head) for head in positions(part, row)] == [min(part.num_slots, seen)] * part.shape.kv_heads
                assert driver.cache.live(row, part.num_slots) == min(part.num_slots, seen)


@given(scenarios())
def test_live_slots_are_a_prefix_and_hold_each_position_once(scenario: Scenario) -> None:
    for driver in scenario.played():
        for part in driver.cache.parts:
            for row, seen in enumerate(driver.seen):
                live = min(part.num_slots, seen)
                pos = part.slots.pos[row, :, : part.num_slots]
                assert (pos[:, live:] == -1).all()
                assert (pos[:, :live] >= 0).all() and (pos[:, :live] < seen).all()
                assert all(len(set(head)) == live for head in pos[:, :live].tolist())


@given(scenarios())
def test_a_live_slot_holds_the_key_and_value_of_its_position(scenario: Scenario) -> None:
    *_, driver = scenario.played()
    for part in driver.cache.parts:
        held = Candidates(part.slots.pos, part.slots.pos, None, ((part.slots.k, part.slots.v),))
        k, v = held.keys, held.values
        for row in range(scenario.rows):
            stream = as_stored(driver.streams[row][part.heads.layer], scenario.stored)
            live = driver.cache.live(row, part.num_slots)
            for head, held in enumerate(part.slots.pos[row, :, :live].long()):
                assert torch.equal(k[row, head, :live], stream.k[part.heads.numbers[head], held])
                assert torch.equal(v[row, head, :live], stream.v[part.heads.numbers[head], held])
                assert torch.equal(part.slots.rot[row, head, :live].long(), held)


@given(scenarios())
def test_the_recent_window_is_never_evicted(scenario: Scenario) -> None:
    for driver in scenario.played():
        for part in driver.cache.parts:
            for row, seen in enumerate(driver.seen):
                recent = min(scenario.policy.recent(part.num_slots), max(1, part.num_slots - 1))
                assert all(set(range(max(0, seen - recent), seen)) <= head for head in positions(part, row))


@given(scenarios())
def test_sinks_and_pins_are_never_evicted_where_a_layer_sees_everything(scenario: Scenario) -> None:
    for driver in scenario.played():
        for part in driver.cache.parts:
            if part.shape.window is not None:
                continue
            for row, seen in enumerate(driver.seen):
                kept = {*range(scenario.policy.sinks)}
                pinned = {p for span in scenario.pins[row] for p in range(*span)}
                if part.num_slots >= scenario.policy.min_slots(len(pinned - kept)):
                    kept |= pinned
                assert all({p for p in kept if p < seen} <= head for head in positions(part, row))


@given(scenarios())
def test_a_sliding_layer_with_room_for_its_window_loses_nothing_it_still_sees(scenario: Scenario) -> None:
    for driver in scenario.played():
        for part in driver.cache.parts:
            if part.shape.window is None or part.num_slots < part.shape.window:
                continue
            for row, seen in enumerate(driver.seen):
                visible = set(range(max(0, seen - part.shape.window + 1), seen))
                assert all(visible <= head for head in positions(part, row))


@given(scenarios())
def test_reset_leaves_nothing_of_a_row_and_touches_no_other(scenario: Scenario) -> None:
    *_, driver = scenario.played()
    cache, last = driver.cache, scenario.rows - 1
    others = [tensor[:last].clone() for tensor in cache.tensors()]
    cache.reset(last)
    for part in cache.parts:
        assert (part.slots.pos[last] == -1).all() and (part.slots.rot[last] == -1).all()
        assert not any(tensor[last].any() for name, tensor in part.tensors.items() if name not in ("pos", "rot"))
        assert cache.live(last, part.num_slots) == 0
    assert all(torch.equal(tensor[:last], before) for tensor, before in zip(cache.tensors(), others, strict=True))
    driver.seen[last] = driver.rot[last] = 0
    fresh = Driver(
        make_cache(scenario.shape, scenario.slots, scenario.policy, dtype=scenario.stored, needs=scenario.needs),
        driver.streams[last:],
        driver.pins[last:],
    )
    for count in (9, 1, 7, 1):
        for again, first in zip(driver.feed([count], last), fresh.feed([count]), strict=True):
            assert_parity("out", again[0], first[0])
    for index, part in enumerate(cache.parts):
        assert positions(part, last) == positions(fresh.cache.parts[index])


@pytest.mark.parametrize("counts", [[5], [20], [20, 1], [9, 9, 9]])
def test_a_value_that_is_not_finite_leaves_with_its_row(counts: list[int]) -> None:
    shape = model_shape(attention_layer(), attention_layer(window=5))
    driver = Driver(make_cache(shape, 16, HeavyHitter()), [random_streams(shape, 1, 60, 0)])
    values = [stream.v.clone() for stream in driver.streams[0]]
    for stream in driver.streams[0]:
        stream.v.fill_(torch.inf)
    for count in counts:
        driver.feed([count])
    driver.cache.reset(0)
    driver.seen, driver.rot = [0], [0]
    for stream, value in zip(driver.streams[0], values, strict=True):
        stream.v.copy_(value)
    for count in (3, 9, 1, 9, 1):
        assert all(out[0].isfinite().all() for out in driver.feed([count]))


TURNS = Rotation(50.0 ** -(torch.arange(2) / 2), 0, False)


@given(scenarios(), st.booleans(), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_restored_snapshot_continues_as_the_row_did(scenario: Scenario, turned: bool, then: list[int]) -> None:
    driver = scenario.driver({0: TURNS})
    for counts in scenario.steps:
        driver.feed(counts)
    if turned:
        driver.rerotate(0)
    cache, row = driver.cache, scenario.rows - 1
    snapshot = cache.snapshot(0)
    assert snapshot.num_bytes == cache.live_bytes(0)
    was = driver.seen[0], driver.rot[0]
    first = [driver.feed([count]) for count in then]
    held = {index: positions(part) for index, part in enumerate(cache.parts)}

    cache.restore(row, snapshot)
    driver.streams = [driver.streams[0]] * scenario.rows
    driver.pins = [driver.pins[0]] * scenario.rows
    driver.seen[row], driver.rot[row] = was
    for count, outs in zip(then, first, strict=True):
        for index, (again, out) in enumerate(zip(driver.feed([count], row), outs, strict=True)):
            assert_parity(f"out of layer {index}", again[0], out[0])
    assert {index: positions(part, row) for index, part in enumerate(cache.parts)} == held


@given(scenarios())
def test_rotations_after_rerotation_are_consecutive_in_the_order_of_positions(scenario: Scenario) -> None:
    rotations = dict.fromkeys(range(len(scenario.shape.layers)), TURNS)
    driver = replace(scenario, stored="float32").driver(rotations)
    for counts in scenario.steps:
        driver.feed(counts)
    for row in range(scenario.rows):
        driver.rerotate(row)
    for counts in scenario.steps[:3]:  # and on from there
        driver.feed(counts)
    assume(max(driver.seen))
    for row, seen in enumerate(driver.seen):
        driver.rerotate(row)
        assert driver.rot[row] == min(seen, max(part.num_slots for part in driver.cache.parts))
        for part in driver.cache.parts:
            live = driver.cache.live(row, part.num_slots)
            for head, number in enumerate(part.heads.numbers):
                pos, rot, key = (
                    tensor[row, head, :live] for tensor in (part.slots.pos, part.slots.rot, part.tensors["k"])
                )
                assert rot[pos.argsort()].tolist() == list(range(driver.rot[row] - live, driver.rot[row]))
                raw = driver.streams[row][part.heads.layer].k[number, pos.long()]
                assert_parity("keys", key, rotated(raw, rot, TURNS), 1e-4)


def test_a_layer_whose_rotation_is_not_known_keeps_its_keys() -> None:
    shape = model_shape(attention_layer(), attention_layer())
    driver = Driver(make_cache(shape, 12, HeavyHitter()), [random_streams(shape, 1, 40, 0)], rotations={0: TURNS})
    driver.feed([30])
    before = driver.cache.parts[1].tensors["k"].clone()
    driver.rerotate(0)
    assert torch.equal(driver.cache.parts[1].tensors["k"], before)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    layers = [attention_layer(draw(st.integers(1, 3)), draw(st.sampled_from((8, 80))))]
    for _ in range(draw(st.integers(0, 4))):
        dim, v_dim = draw(st.sampled_from((4, 24, 64))), draw(st.sampled_from((4, 20)))
        window = draw(st.sampled_from((None, 1, 5, 30)))
        kind = draw(st.sampled_from(("attention", "state", "hybrid")))
        if kind == "state":
            layers.append(LayerShape("state", 0, 0, 0, None, draw(st.integers(1, 999))))
        else:
            layer = attention_layer(draw(st.integers(1, 4)), dim, window, v_dim)
            layers.append(replace(layer, state_bytes=128 if kind == "hybrid" else 0))
    return model_shape(*draw(st.permutations(layers)), max_positions=draw(st.sampled_from((None, 64))))


@given(
    shapes(),
    st.sampled_from((*POLICIES, Full())),
    st.sampled_from(tuple(FORMATS)),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 3000),
    st.data(),
)
def test_planned_bytes_are_measured_bytes_and_within_the_budget(
    shape: ModelShape, policy: Policy, dtype: str, rows: int, slots: int, spare: int, data: st.DataObject
) -> None:
    needs = data.draw(st.one_of(st.none(), needs_of(shape.layers)))
    budget = make_plan(shape, f"{slots}tok", policy, rows, dtype, 0, needs).reserved_bytes + spare
    plan = make_plan(shape, f"{budget}B", policy, rows, dtype, 0, needs)
    cache = SlotCache(shape, plan, policy, FORMATS[dtype], CPU)
    assert plan.slots >= slots
    assert cache.num_bytes == plan.reserved_bytes - plan.state_bytes
    assert sum(tensor.nbytes for tensor in cache.tensors()) + plan.state_bytes <= budget
    if needs is None and not isinstance(policy, Pyramid):
        assert cache.bytes_for(plan.slots) == plan.reserved_bytes
    more = make_plan(shape, f"{cache.bytes_for(plan.fewest + 1)}B", policy, rows, dtype)
    assert more.fewest > plan.fewest or more.capped_by == "window"

    def held(*names: str) -> int:
        return sum(
            part.tensors[name][:, :, :-1].numel() * part.tensors[name].itemsize
            for part in cache.parts
            for name in names
            if name in part.tensors
        )

    k_v = ("k", "v", "k_scale", "v_scale")
    assert held(*k_v) == plan.k_v_bytes
    assert held("pos", "rot") == plan.position_bytes
    assert held("statistic", "bias") == plan.policy_state_bytes
    assert cache.num_bytes - held(*k_v, "pos", "rot", "statistic", "bias") == plan.staging_bytes


@given(
    st.integers(2, 20),
    st.lists(st.one_of(st.none(), st.integers(1, 28)), min_size=1, max_size=3),
    st.lists(st.integers(1, 7), max_size=4),
)
def test_room_is_how_many_tokens_fit_before_one_that_is_still_visible_goes(
    slots: int, windows: list[int | None], fed: list[int]
) -> None:
    assume(any(window is None or window > slots + 1 for window in windows))
    shape = model_shape(*(attention_layer(1, 4, window) for window in windows))
    cache = make_cache(shape, slots, Full())
    driver = Driver(cache, [random_streams(shape, 1, 60, 0)])

    def sees_all() -> bool:
        seen = driver.seen[0]
        spans = [(0 if window is None else max(0, seen - window + 1), seen) for window in windows]
        return all(
            set(range(*span)) <= head for span, part in zip(spans, cache.parts, strict=True) for head in positions(part)
        )

    for count in fed:
        driver.feed([min(count, cache.room(0)) or 0])
    room = cache.room(0)
    assert room == slots - driver.seen[0]
    driver.feed([room])
    assert cache.room(0) == 0 and sees_all()
    driver.feed([1])
    assert not sees_all()


def test_there_is_always_room_where_every_layer_slides() -> None:
    shape = model_shape(attention_layer(window=8), attention_layer(window=5))
    driver = Driver(make_cache(shape, 8, Full()), [random_streams(shape, 1, 60, 0)])
    driver.feed([50])
    assert driver.cache.room(0) > 10**9


def test_counts_are_those_of_the_row() -> None:
    shape = model_shape(attention_layer(2, 8), attention_layer(1, 8, window=6))
    cache = make_cache(shape, 16, HeavyHitter(), rows=2)
    driver = Driver(cache, [random_streams(shape, 2, 60, seed) for seed in range(2)])
    driver.feed([20, 5])
    slot = (8 + 8) * 4 + 8 + 4  # key and value, positions, mass
    reserved = cache.plan.reserved_bytes // 2
    live = (16 * 2 + 6) * slot, (5 * 2 + 5) * slot

    def counts(live_bytes: int, peak: int, seen: int, kept: int, full: int) -> KVCounts:
        evicted = seen - kept
        return KVCounts(reserved, reserved, live_bytes, peak, seen, kept, evicted, "heavy-hitter", "float32", full, 2)

    assert cache.counts(0, 20, 7777) == counts(live[0], 7777, 20, 16, full=2)
    assert cache.counts(1, 5, 0) == counts(live[1], 0, 5, 5, full=0)


def test_kept_tokens_are_counted_in_full_layers_and_in_sliding_ones_where_there_are_no_others() -> None:
    mixed = model_shape(attention_layer(2), attention_layer(2, window=4))
    sliding = model_shape(attention_layer(1, window=4), attention_layer(3, window=9))
    for shape, kept in ((mixed, 11), (sliding, (4 + 3 * 9) // 4)):
        cache = make_cache(shape, 30, Window())
        Driver(cache, [random_streams(shape, 1, 11, 0)]).feed([11])
        assert cache.tokens_kept(0) == kept


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_slots_of_lower_precision_round_what_they_hold(dtype: str) -> None:
    shape = model_shape(attention_layer())
    cache = make_cache(shape, 12, HeavyHitter(), dtype=dtype)
    driver = Driver(cache, [random_streams(shape, 2, 60, 0)])
    for count in (9, 14, 1, 1):
        (outs,) = driver.feed([count])
        assert outs[0].dtype == torch.float32 and outs[0].isfinite().all()
    part = cache.parts[0]
    held = part.slots.pos[0, 0, :12].long()
    assert torch.equal(part.tensors["k"][0, 0, :12], driver.streams[0][0].k[0, held].to(getattr(torch, dtype)))


def test_all_heads_of_a_layer_hold_the_same_tokens_under_tova() -> None:
    shape = model_shape(attention_layer(3), attention_layer(2, window=9))
    driver = Driver(make_cache(shape, 16, TOVA()), [random_streams(shape, 2, 60, 0)])
    for count in (20, 1, 1, 9, 1, 1):
        driver.feed([count])
        for part in driver.cache.parts:
            assert all(torch.equal(head, part.slots.pos[0, 0]) for head in part.slots.pos[0])


def test_layers_of_a_pyramid_fill_one_after_the_other() -> None:
    shape = model_shape(*[attention_layer(1, 4)] * 4)
    cache = make_cache(shape, 20, Pyramid(observed=4, beta=4))
    driver = Driver(cache, [random_streams(shape, 1, 60, 0)])
    assert [part.num_slots for part in cache.parts] == [32, 24, 16, 8]
    kept = []
    for count in (8, 6, 16, 20):
        driver.feed([count])
        kept.append((cache.tokens_kept(0), cache.room(0)))
    assert kept == [(8, 0), ((3 * 14 + 8) // 4, 0), ((30 + 24 + 16 + 8) // 4, 0), (20, 0)]


LONG = model_shape(attention_layer(1, 4), attention_layer(2, 4, window=270))


def test_every_live_slot_is_read_however_many_there_are() -> None:
    streams = random_streams(LONG, 2, 570, 0)
    driver = Driver(make_cache(LONG, 600, HeavyHitter()), [streams])
    outs = [driver.feed([count]) for count in (250, 5, 1, 1, 255, 1, 30)]
    pos = torch.arange(driver.seen[0])[None]
    for index, (layer, stream) in enumerate(zip(LONG.layers, streams, strict=True)):
        q, k, v = (tensor[None, :, : driver.seen[0]].double() for tensor in (stream.q, stream.k, stream.v))
        expected = attend(q, pos, Segment(k, v, pos[:, None]), geometry(layer)).out
        assert_parity(f"out of layer {index}", torch.cat([out[index][0] for out in outs], 1), expected[0], 4e-6)


def test_a_row_with_more_live_slots_than_its_neighbour_is_read_whole() -> None:
    streams = [random_streams(LONG, 1, 400, seed) for seed in (0, 1)]
    both = Driver(make_cache(LONG, 300, HeavyHitter(), rows=2), streams)
    alone = Driver(make_cache(LONG, 300, HeavyHitter()), streams[1:])
    for counts in ((10, 250), (2, 7), (1, 33), (2, 20), (1, 1), (1, 7)):
        together, expected = both.feed(counts), alone.feed(counts[1:])
        for index, out in enumerate(expected):
            assert_parity(f"out of layer {index}", together[index][1], out[0])


def test_queries_whose_weight_fp32_does_not_tell_from_none_do_not_count() -> None:
    pos = torch.arange(40, dtype=torch.int32).expand(2, -1)
    seen = observe(HeavyHitter(decay=0.5), pos, [0, 20])
    assert seen is not None
    assert (seen.weight > 0).sum(-1).tolist() == [24, 4]
    assert seen.first(40) == 16
    nothing = observe(HeavyHitter(decay=0.5), pos, [30, 24])
    assert nothing is not None
    assert not nothing.weight.any()
    assert nothing.first(40) == 40
    assert nothing.retention is not None
    assert nothing.retention[0].item() == 0.5**40
