"""A bias of keys: in every way that attention goes on a CPU, and where it comes from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kvlite_kernels import bias as bias_of_keys
from kvlite_kernels import half_attention
from kvlite_kernels.backend import TORCH
from kvlite_kernels.bias import MOST, handed_on
from kvlite_kernels.echo import heard
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.reference import Segment, attend_segments
from kvlite_kernels.statistic import Observation
from tests.parity.compare import assert_parity
from tests.parity.test_fused_attention import in_order
from tests.parity.test_half_attention import apart
from tests.parity.test_reference import Case

CASE = Case(k_dim=64, v_dim=64, queries=7, rows=1)
KEYS = 40


def as_more_keys(segment: Segment) -> Segment:
    """The same attention without a bias: log 2 is a key that is there twice."""
    assert segment.bias is not None
    twice = torch.arange(0, KEYS, 2)
    k, v = (torch.cat([x, x[:, :, twice]], 2).double() for x in (segment.k, segment.v))
    return Segment(k, v, torch.cat([segment.pos, segment.pos[..., twice]], -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("is_apart", [False, True])
@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize("is_fast", [False, True])
def test_a_bias_of_log_2_is_a_second_key_like_it(
    monkeypatch: pytest.MonkeyPatch, is_fast: bool, is_ordered: bool, is_apart: bool, queries: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(half_attention, "IS_FAST", is_fast)
    case = replace(CASE, dtype=dtype, queries=queries)
    q, q_pos, segment = in_order(case, KEYS)
    bias = torch.zeros(segment.pos.shape).expand(-1, case.kv_heads, -1).clone()
    bias[..., torch.arange(0, KEYS, 2)] = math.log(2)
    given = replace(segment, bias=bias)
    expected, _ = attend_segments(q.double(), q_pos, [as_more_keys(given)], case.geometry, None)
    segments = apart(given, KEYS, queries) if is_apart else [given]
    if not is_ordered:
        segments = [replace(one, before=None, own=0) for one in segments]
    out, _ = TORCH.attend(q, q_pos, segments, case.geometry, None)
    assert_parity("out", out, expected, 2e-2 if dtype is torch.bfloat16 else 1e-5)
    unbiased, _ = TORCH.attend(q, q_pos, [replace(one, bias=None) for one in segments], case.geometry, None)
    assert float((unbiased - out).abs().max()) > 0.1


def test_queries_that_come_again_see_the_bias() -> None:
    q, q_pos, segment = in_order(CASE, KEYS)
    bias = torch.zeros(segment.pos.shape).expand(-1, CASE.kv_heads, -1).clone()
    bias[..., torch.arange(0, KEYS, 2)] = math.log(2)
    given = replace(segment, bias=bias, before=None, own=0)
    observation = Observation(Statistic.MASS, torch.ones(q_pos.shape))
    wanted = heard(q, q_pos + 50, [as_more_keys(given)], CASE.geometry, observation)
    wanted[..., torch.arange(0, KEYS, 2)] *= 2
    got = heard(q, q_pos + 50, [given], CASE.geometry, observation)
    assert_parity("heard", got, wanted[..., : got.shape[-1]], 1e-4)


@pytest.mark.parametrize("elements", [1, 6, 1000])
@pytest.mark.parametrize("cut", [2, 4])
def test_the_nearest_key_that_stays_takes_over_what_one_received(
    monkeypatch: pytest.MonkeyPatch, cut: int, elements: int
) -> None:
    rows = [[1.0, 0.0], [3.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.1, 2.0], [1.0, 0.2], [1.0, 1.0]]  # the last is far
    keys = torch.tensor(rows)[None, None]
    monkeypatch.setattr(bias_of_keys, "TILE_ELEMENTS", elements)
    known = torch.tensor([[[2.0, 1.0, 4.0, 0.0, 4.0, 6.0, 9.0]]])
    bias = torch.zeros(1, 1, 7)
    bias[..., 0] = math.log(2)  # it stands for 4 already
    bias[..., 1] = math.log(3)  # what it was handed goes with it
    gone = torch.tensor([[[1, 4, 5, 6]]])
    takes = torch.tensor([[[True, False, True, True, False, False, False]]])
    found = handed_on([keys[:, :, :cut], keys[:, :, cut:]], known, bias, gone, takes)
    assert found[0, 0, [0, 2, 3]].exp().tolist() == pytest.approx([(4 + 1 + 6) / 2, 2.0, 1.0])


def test_a_bias_has_an_end_and_nothing_of_nothing_is_handed_on() -> None:
    keys = [torch.ones(1, 1, 3, 4)]
    gone = torch.tensor([[[2]]])
    takes = torch.tensor([[[True, False, False]]])
    zero = torch.zeros(1, 1, 3)
    assert handed_on(keys, torch.tensor([[[1e-6, 0.0, 9.0]]]), zero, gone, takes)[0, 0].tolist() == [MOST, 0.0, 0.0]
    assert handed_on(keys, torch.tensor([[[0.0, 0.0, 9.0]]]), zero, gone, takes).equal(zero)
    assert handed_on(keys, torch.tensor([[[1.0, 0.0, 0.0]]]), zero, gone, takes).equal(zero)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_codes_are_near_where_what_they_stand_for_is(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setattr(bias_of_keys, "NEAR", -1.0)
    keys = torch.randn(2, 3, 30, 32, generator=torch.Generator().manual_seed(0))
    coded = TORCH.quantise(keys, bits, 32)
    known, zero = torch.rand(2, 3, 30, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 3, 30)
    gone = torch.arange(4, 30, 3).expand(2, 3, -1)
    takes = torch.ones(2, 3, 30, dtype=torch.bool).scatter(-1, gone, False)
    found = handed_on([coded[:, :, :20], coded[:, :, 20:]], known, zero, gone, takes)
    assert_parity("bias", found, handed_on([coded.to(torch.float32)], known, zero, gone, takes), 1e-6)
