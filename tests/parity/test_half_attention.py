"""Attention in bfloat16 against the plain reference, which computes in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvlite_kernels import half_attention
from kvlite_kernels.backend import TORCH
from kvlite_kernels.half_attention import attend_among, attend_half, suits, suits_among, suits_one
from kvlite_kernels.kinds import Heads, Statistic
from kvlite_kernels.reference import Segment, attend_segments
from kvlite_kernels.statistic import Observation
from tests.parity.compare import assert_parity
from tests.parity.test_fused_attention import in_order
from tests.parity.test_reference import Case, mass, weights

CASE = Case(k_dim=64, v_dim=64, dtype=torch.bfloat16, queries=23)
ROUNDED = 2e-2
"""A logit of up to 8 is rounded by a 64th."""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_attention, "IS_FAST", True)


def apart(segment: Segment, before: int, queries: int) -> list[Segment]:
    """Slots of which the last are free, and the queries' own keys."""
    own = slice(before, before + queries)
    slots = torch.cat([segment.pos[..., :before], torch.full_like(segment.pos[..., own], -1)], -1)
    new = Segment(segment.k[:, :, own], segment.v[:, :, own], segment.pos[:, :, own], None, 0, queries)
    return [replace(segment, pos=slots, own=0), new]


@pytest.mark.parametrize("elements", [1, 2000, 1 << 20])
@pytest.mark.parametrize("queries", [None, 9])
@pytest.mark.parametrize("heads", ["mean", "layer"])
@pytest.mark.parametrize("is_apart", [False, True])
def test_out_and_mass_are_those_of_the_reference_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, is_apart: bool, heads: Heads, queries: int | None, elements: int
) -> None:
    q, q_pos, segment = in_order(CASE, 40)
    segments = apart(segment, 40, CASE.queries) if is_apart else [segment]
    observation = Observation(Statistic.MASS, weights(q_pos), heads=heads, queries=queries)
    if queries is not None:
        observation.weight[:, :-queries] = 0
    expected, shares = attend_segments(q.float(), q_pos, segments, CASE.geometry, observation)
    monkeypatch.setattr(half_attention, "ELEMENTS", elements)
    assert suits(q, segments, CASE.geometry)
    given = attend_half(q, segments, CASE.geometry, observation)
    assert given is not None
    assert given[0].dtype == torch.bfloat16
    assert_parity("out", given[0], expected, ROUNDED)
    for actual, share in zip(given[1], shares, strict=True):
        assert_parity("mass", actual, share, ROUNDED)


@pytest.mark.parametrize("elements", [1, 2000, 1 << 20])
def test_queries_whose_keys_stand_anywhere_see_what_positions_say(
    monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    q, q_pos, segment = in_order(replace(CASE, rows=1), 40)
    order = torch.stack([torch.randperm(segment.k.shape[2]) for _ in range(segment.k.shape[1])])[None]
    keys = (x.gather(2, order[..., None].expand_as(x)) for x in (segment.k, segment.v))
    pos = segment.pos.expand(-1, order.shape[1], -1).gather(2, order)
    segment = Segment(*keys, pos)
    expected, _ = attend_segments(q.float(), q_pos, [segment], CASE.geometry, None)
    monkeypatch.setattr(half_attention, "ELEMENTS", elements)
    assert suits_among(q, [segment], CASE.geometry, None)
    out, _ = TORCH.attend(q, q_pos, [segment], CASE.geometry, None)
    assert out.dtype == torch.bfloat16
    assert_parity("out", out, expected, ROUNDED)
    assert attend_among(q * 100, q_pos, segment, CASE.geometry) is None


def test_what_is_observed_or_has_a_window_or_other_rows_does_not_suit_among() -> None:
    q, q_pos, segment = in_order(replace(CASE, rows=1), 40)
    segment = replace(segment, before=None)
    assert suits_among(q, [segment], CASE.geometry, None)
    assert not suits_among(q, [segment], CASE.geometry, mass(q_pos))
    assert not suits_among(q, [segment], replace(CASE, window=9).geometry, None)
    assert not suits_among(q.repeat(2, 1, 1, 1), [segment], CASE.geometry, None)


def test_logits_too_large_to_be_rounded_are_left_to_others() -> None:
    q, q_pos, segment = in_order(CASE, 40)
    assert attend_half(q * 100, [segment], CASE.geometry, mass(q_pos)) is None
    assert attend_half(q * torch.nan, [segment], CASE.geometry, None) is None


def test_only_bfloat16_in_order_suits() -> None:
    q, _, segment = in_order(CASE, 40)
    assert suits(q, [segment], CASE.geometry)
    assert not suits(q.float(), [segment], CASE.geometry)
    assert not suits(q, [replace(segment, k=segment.k.float())], CASE.geometry)
    assert not suits(q, [replace(segment, before=None)], CASE.geometry)
    assert not suits(q, [segment], replace(CASE, sink=True).geometry)
    assert not suits(q[:, :, :5], [segment], CASE.geometry)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("dim", [16, 64, 80])
def test_one_query_attends_as_in_the_reference(dim: int, kv_heads: int, rows: int) -> None:
    case = replace(CASE, k_dim=dim, v_dim=dim, rows=rows, kv_heads=kv_heads, queries=1)
    q, q_pos, segment = in_order(case, 40)
    segment = replace(segment, before=41, own=0)  # one token sees itself
    expected, _ = attend_segments(q.float(), q_pos, [segment], case.geometry, None)
    assert suits_one(q, [segment], case.geometry, None)
    out, _ = TORCH.attend(q, q_pos, [segment], case.geometry, None)
    assert out.dtype == torch.bfloat16 and out.shape == q.shape
    assert_parity("out", out, expected, ROUNDED)
    in_turn, _ = TORCH.attend_in_turn(torch.cat([q, q], 2), q_pos.expand(-1, 2), [segment] * 2, case.geometry, None)
    assert torch.equal(in_turn, torch.cat([out, out], 2))


def test_one_query_over_heads_with_slots_of_their_own_attends_as_over_each() -> None:
    q, q_pos, segment = in_order(replace(CASE, queries=1), 40)
    parts = []
    for head, keys in enumerate((41, 17)[: segment.k.shape[1]]):
        own, here = slice(head, head + 1), slice(0, keys)
        k, v, pos = segment.k[:, own, here], segment.v[:, own, here], segment.pos[:, :, here]
        parts.append(Segment(k, v, pos, None, keys))
    assert len(parts) == segment.k.shape[1] == 2
    out = TORCH.attend_beside(q, parts, CASE.geometry, None)
    each = [
        TORCH.attend(x, q_pos, [part], CASE.geometry, None)[0] for x, part in zip(q.chunk(2, 1), parts, strict=True)
    ]
    assert torch.equal(out, torch.cat(each, 1))


def test_one_query_that_is_observed_is_left_to_others() -> None:
    q, q_pos, segment = in_order(replace(CASE, queries=1), 40)
    segment = replace(segment, before=41, own=0)
    assert not suits_one(q, [segment], CASE.geometry, Observation(Statistic.MASS, weights(q_pos)))
    assert not suits_one(q.float(), [segment], CASE.geometry, None)
    assert not suits_one(q, [replace(segment, before=40, own=1)], CASE.geometry, None)
