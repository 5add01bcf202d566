"""Attention in bfloat16 against the plain reference, which computes in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvlite_kernels import half_attention
from kvlite_kernels.half_attention import attend_half, suits
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
