"""The torch twins against the formulas, at shapes that are awkward on purpose."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvlite_kernels import reference
from kvlite_kernels.eviction import choose
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.reference import Geometry, Segment, attend, attend_segments, merge
from kvlite_kernels.statistic import Observation, received
from tests.parity import naive
from tests.parity.compare import assert_parity


@dataclass(frozen=True)
class Case:
    """Sizes of one problem; `shared` gives all heads the same positions, as new tokens have."""

    rows: int = 2
    kv_heads: int = 2
    group: int = 3
    queries: int = 5
    keys: int = 21
    k_dim: int = 8
    v_dim: int = 8
    window: int | None = None
    softcap: float | None = None
    sink: bool = False
    shared: bool = False
    dtype: torch.dtype = torch.float64

    @property
    def geometry(self) -> Geometry:
        logits = torch.linspace(-2, 3, self.kv_heads * self.group, dtype=self.dtype) if self.sink else None
        return Geometry(self.k_dim**-0.5, self.window, self.softcap, logits)


def problem(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Segment]:
    """Queries at the last positions, padded on the left in the last row; keys at scattered positions, some free."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.dtype)

    heads = 1 if case.shared else case.kv_heads
    places = torch.rand(case.rows, heads, case.keys + 3, generator=generator).argsort(-1)[..., : case.keys]
    pos = torch.where(places < 3, -1, places).int()  # about three free, and the last queries see nearly all
    q_pos = torch.arange(case.queries).int().expand(case.rows, -1) + max(0, case.keys + 2 - case.queries)
    q_pos = q_pos.clone()
    q_pos[-1, : case.queries // 3] = -1
    k = normal(case.rows, case.kv_heads, case.keys, case.k_dim)
    v = normal(case.rows, case.kv_heads, case.keys, case.v_dim)
    return normal(case.rows, case.kv_heads * case.group, case.queries, case.k_dim) * 2, q_pos, Segment(k, v, pos)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_that_lie_head_by_head_are_not_copied(dtype: torch.dtype) -> None:
    case = Case(rows=3, queries=1, dtype=dtype)
    q, q_pos, segment = problem(case)
    held = replace(segment, pos=segment.pos.clamp(max=int(q_pos.max())), before=case.keys)
    expected, masses = attend_segments(q, q_pos, [held], case.geometry, mass(q_pos))
    k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (held.k, held.v))
    with CountsCopies(k.numel()) as counted:
        out, shares = attend_segments(q, q_pos, [replace(held, k=k, v=v)], case.geometry, mass(q_pos))
    assert counted.copies == 0
    assert_parity("out", out, expected, 1e-6)
    assert_parity("mass", shares[0], masses[0], 1e-6)


class CountsCopies(TorchDispatchMode):
    """Counts copies of tensors of `size` numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.copies = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_copy = func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
        self.copies += is_copy and args[0].numel() == self.size
        return func(*args, **(kwargs or {}))


def split(segment: Segment, *at: int) -> list[Segment]:
    edges = [0, *at, segment.k.shape[2]]
    spans = [slice(*edge) for edge in pairwise(edges)]
    return [Segment(segment.k[:, :, s], segment.v[:, :, s], segment.pos[:, :, s]) for s in spans]


def weights(q_pos: Tensor, decay: float = 0.9) -> Tensor:
    """One weight a query, 0 for padding, as a decayed policy has them."""
    return decay ** torch.arange(q_pos.shape[1] - 1, -1, -1) * (q_pos >= 0)


def mass(q_pos: Tensor) -> Observation:
    """Attention mass by those weights."""
    return Observation(Statistic.MASS, weights(q_pos))


CASES = {
    "plain": Case(),
    "one query": Case(queries=1, rows=1),
    "one query a head": Case(group=1, kv_heads=3),
    "group of eight": Case(group=8, kv_heads=1),
    "63 queries": Case(queries=63, keys=64, rows=1, kv_heads=1),
    "D 64": Case(k_dim=64, v_dim=64),
    "D 80, values narrower": Case(k_dim=80, v_dim=24),
    "values wider": Case(k_dim=8, v_dim=20),
    "window": Case(window=6),
    "window of one": Case(window=1),
    "softcap": Case(softcap=1.5),
    "window, softcap": Case(window=9, softcap=4.0, group=1),
    "same positions in all heads": Case(shared=True),
    "one key": Case(keys=1),
    "fp32": Case(dtype=torch.float32),
    "fp32, softcap, D 80": Case(dtype=torch.float32, softcap=2.0, k_dim=80, v_dim=80),
}
SINKS = {f"{name}, sink logit": replace(case, sink=True) for name, case in CASES.items()}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attend_is_the_softmax_over_what_a_query_may_see(case: Case) -> None:
    q, q_pos, segment = problem(case)
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    partial = attend(q, q_pos, segment, case.geometry)
    assert_parity("out", partial.out, expected.out, TOLERANCE[case.dtype])
    assert_parity("lse", partial.lse, expected.lse, TOLERANCE[case.dtype])


def test_attend_gives_minus_infinity_and_zero_where_nothing_is_visible() -> None:
    q, q_pos, segment = problem(Case())
    partial = attend(q, torch.full_like(q_pos, -1), segment, Case().geometry)
    assert_parity("lse", partial.lse, torch.full_like(partial.lse, -torch.inf))
    assert_parity("out", partial.out, torch.zeros_like(partial.out))


def test_attend_computes_low_precision_in_fp32() -> None:
    case = Case(dtype=torch.bfloat16, k_dim=64, v_dim=64)
    q, q_pos, segment = problem(case)
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    assert_parity("out", attend(q, q_pos, segment, case.geometry).out, expected.out, 4e-6)
    out, _ = attend_segments(q, q_pos, [segment], case.geometry, None)
    assert out.dtype == torch.bfloat16
    assert_parity("out, rounded", out, expected.out, 1e-2)


@pytest.mark.parametrize("at", [(), (7,), (1, 2, 20), (5, 5 + 8)])
@pytest.mark.parametrize("case", [Case(), Case(window=4), Case(shared=True), Case(dtype=torch.float32)])
def test_merge_is_exact_for_any_split_of_the_keys(case: Case, at: tuple[int, ...]) -> None:
    q, q_pos, segment = problem(case)
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    partials = [attend(q, q_pos, part, case.geometry) for part in split(segment, *at)]
    out, lse = merge([partial.out for partial in partials], [partial.lse for partial in partials])
    assert_parity("out", out, expected.out, TOLERANCE[case.dtype])
    assert_parity("lse", lse, expected.lse, TOLERANCE[case.dtype])


def test_merge_with_a_segment_nobody_sees_changes_nothing() -> None:
    case = Case()
    q, q_pos, segment = problem(case)
    free = replace(segment, pos=torch.full_like(segment.pos, -1))
    seen, unseen = (attend(q, q_pos, part, case.geometry) for part in (segment, free))
    out, lse = merge([seen.out, unseen.out], [seen.lse, unseen.lse])
    assert_parity("out", out, seen.out)
    assert_parity("lse", lse, seen.lse)
    out, lse = merge([unseen.out, unseen.out], [unseen.lse, unseen.lse])
    assert_parity("out of nothing", out, torch.zeros_like(out))
    assert_parity("lse of nothing", lse, torch.full_like(lse, -torch.inf))


@pytest.mark.parametrize("case", SINKS.values(), ids=SINKS)
def test_segments_attend_as_one_and_give_every_key_its_statistic(case: Case) -> None:
    q, q_pos, segment = problem(case)
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    parts = split(segment, case.keys // 3) if case.keys > 1 else [segment]
    out, masses = attend_segments(q, q_pos, parts, case.geometry, mass(q_pos))
    assert_parity("out", out, expected.out, TOLERANCE[case.dtype])
    total = naive.received(expected.probability, weights(q_pos), case.kv_heads)
    assert_parity("mass", torch.cat(masses, -1), total, 4 * TOLERANCE[case.dtype])


@pytest.mark.parametrize("sink", [False, True])
def test_what_a_query_gives_to_all_segments_and_the_sink_sums_to_one(sink: bool) -> None:
    case = Case(sink=sink)
    q, q_pos, segment = problem(case)
    for t in range(case.queries):
        one = torch.zeros(case.rows, case.queries)
        one[:, t] = 1.0
        _, masses = attend_segments(q, q_pos, split(segment, 4, 9), case.geometry, Observation(Statistic.MASS, one))
        lse = naive.attention(q, q_pos, [segment], case.geometry).lse[:, :, t]
        total = torch.cat(masses, -1).sum(-1)
        if case.geometry.sink_logits is not None:
            taken = torch.exp(case.geometry.sink_logits - lse).view(case.rows, case.kv_heads, case.group)
            total = total + taken.mean(-1)
        real = (q_pos[:, t] >= 0) if not sink else torch.ones(case.rows, dtype=torch.bool)
        assert_parity(f"query {t}", total[real], torch.ones_like(total[real]))


def test_the_statistic_of_one_segment_needs_only_the_merged_lse() -> None:
    case = Case(sink=True)
    q, q_pos, segment = problem(case)
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    near, far = split(segment, 6)
    alone = attend(q, q_pos, near, case.geometry)
    (actual,) = received([alone.logits], expected.lse, q_pos, [near.pos], mass(q_pos), case.kv_heads)
    total = naive.received(expected.probability, weights(q_pos), case.kv_heads)
    assert_parity("mass", actual, total[..., :6])
    assert far.k.shape[2] == case.keys - 6


@pytest.mark.parametrize("elements", [1, 64, 700, 5000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, elements: int, dtype: torch.dtype) -> None:
    case = Case(queries=17, keys=40, sink=True, dtype=dtype, v_dim=12)
    q, q_pos, segment = problem(case)
    parts = split(segment, 25)
    whole, masses = attend_segments(q, q_pos, parts, case.geometry, mass(q_pos))
    monkeypatch.setattr(reference, "TILE_ELEMENTS", elements)
    tiled, tiled_masses = attend_segments(q, q_pos, parts, case.geometry, mass(q_pos))
    assert_parity("out", tiled, whole)
    for index, (actual, expected) in enumerate(zip(tiled_masses, masses, strict=True)):
        assert_parity(f"mass of segment {index}", actual, expected, 1e-5 if dtype != torch.float64 else None)


def test_wide_slots_of_low_precision_are_widened_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(dtype=torch.bfloat16, keys=50)
    q, q_pos, segment = problem(case)
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 100)  # a few keys at once
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    assert_parity("out", attend(q, q_pos, segment, case.geometry).out, expected.out, 4e-6)


HALVES = Case(dtype=torch.bfloat16, k_dim=32, v_dim=32, keys=60)
HALF_CASES = {
    "hidden keys": HALVES,
    "soft cap, sink, window": replace(HALVES, softcap=3.0, sink=True, window=20),
    "fp16": replace(HALVES, dtype=torch.float16),
    "one query, plain": replace(HALVES, queries=1, rows=1),
}


@pytest.mark.parametrize("case", HALF_CASES.values(), ids=HALF_CASES)
def test_halves_are_multiplied_as_they_are_where_sums_stay_wide(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, whose product is played here."""
    products: list[torch.dtype] = []

    def bmm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        products.extend([a.dtype] * (a.dtype == case.dtype))
        assert a.dtype == b.dtype
        return (a.double() @ b.double()).to(out_dtype or a.dtype)

    monkeypatch.setattr(reference, "sums_widely", lambda device: True)
    monkeypatch.setattr(torch, "bmm", bmm)
    q, q_pos, segment = problem(case)
    if case.queries == 1:
        segment = replace(segment, pos=torch.arange(case.keys).int().expand_as(segment.pos), before=case.keys)
        q_pos = torch.full_like(q_pos, case.keys)
    observation = Observation(Statistic.MASS, weights(q_pos).float())
    out, (received_,) = attend_segments(q, q_pos, [segment], case.geometry, observation)
    wide = replace(segment, k=segment.k.double(), v=segment.v.double())  # type: ignore[union-attr]
    expected, (mass_,) = attend_segments(q.double(), q_pos, [wide], case.geometry, observation)
    assert products == [case.dtype] * 2
    assert_parity("out", out, expected)
    assert_parity("mass", received_, mass_, 4e-6)


Token = tuple[float, int]


def heads(rng: random.Random, slots: int, live: int, tokens: int, padding: int) -> tuple[list[Token], list[Token]]:
    """One head: `live` slots taken, the rest free; `padding` before the real new tokens. Some priorities are equal."""
    first_new = 10 * slots
    positions = rng.sample(range(first_new), live)
    priorities = [0.0, 0.25, 0.5, torch.finfo(torch.float32).min]
    held = [(rng.choice([*priorities, torch.inf, rng.random()]), position) for position in positions]
    rng.shuffle(held)
    held += [(-torch.inf, -1)] * (slots - live)
    new = [(-torch.inf, -1)] * padding
    new += [(rng.choice([*priorities, rng.random()]), first_new + t) for t in range(tokens - padding - 1)]
    new += [(torch.inf, first_new + tokens)] * (padding < tokens)  # the newest is always protected
    return held, new


def chosen(held: list[list[Token]], new: list[list[Token]]) -> list[list[int]]:
    """The choice of `choose` for one row whose heads are `held` and `new`."""
    everyone = [[*before, *after] for before, after in zip(held, new, strict=True)]
    priority = torch.tensor([[score for score, _ in head] for head in everyone])[None]
    pos = torch.tensor([[pos for _, pos in head] for head in everyone], dtype=torch.int32)[None]
    slot: list[list[int]] = choose(priority, pos, len(held[0]))[0].tolist()
    return slot


@given(st.data(), st.integers(1, 12), st.integers(1, 14))
def test_evict_keeps_the_best_of_slots_and_new_tokens(data: st.DataObject, slots: int, tokens: int) -> None:
    live = data.draw(st.one_of(st.just(slots), st.integers(0, slots)), "live")
    padding = data.draw(st.integers(0, tokens), "padding")
    rng = random.Random(data.draw(st.integers(0, 10**6), "seed"))
    drawn = [heads(rng, slots, live, tokens, padding) for _ in range(3)]
    choice = chosen([held for held, _ in drawn], [new for _, new in drawn])
    for (held, new), slot_of in zip(drawn, choice, strict=True):
        stay, expected = naive.survivors(held, new)
        assert {new[t][1]: slot for t, slot in enumerate(slot_of) if slot < slots} == expected
        after = [position for _, position in held]
        for t, slot in enumerate(slot_of):
            if slot < slots:
                after[slot] = new[t][1]
        assert {position for position in after if position >= 0} == stay
        filled = sum(position >= 0 for position in after)
        assert all(position >= 0 for position in after[:filled])  # live slots stay a prefix
        assert filled == min(slots, live + tokens - padding)  # nothing goes while a slot is free


@pytest.mark.parametrize("live", [0, 3, 7])
def test_evict_of_one_token_is_evict_of_several(live: int) -> None:
    rng = random.Random(live)
    for _ in range(50):
        held, new = heads(rng, 7, live, 1, 0)
        one = chosen([held], [new])[0]
        padded = chosen([held], [[(-torch.inf, -1), *new]])[0]
        assert [7, *one] == padded


def test_evict_gives_padding_no_slot() -> None:
    for live in (0, 2, 5):
        held, _ = heads(random.Random(live), 5, live, 1, 0)
        for tokens in (1, 4, 9):
            assert chosen([held], [[(-torch.inf, -1)] * tokens]) == [[5] * tokens]
