"""Attention through torch's fused kernel against the formulas and the plain reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvlite_kernels import fused_attention, half_attention, reference
from kvlite_kernels.fused_attention import attend_fused, serves, suits
from kvlite_kernels.kinds import Heads, Statistic
from kvlite_kernels.lowbit import hadamard, quantise
from kvlite_kernels.reference import Segment, attend_segments
from kvlite_kernels.statistic import Observation
from tests.parity import naive
from tests.parity.compare import assert_parity
from tests.parity.test_reference import CASES, SINKS, TOLERANCE, Case, mass, problem, split, weights

SUITED = {
    name: case
    for name, case in {**CASES, **SINKS}.items()
    if case.queries > 1 and case.softcap is None and case.k_dim == case.v_dim
}


def in_order(case: Case, before: int, free: int = 0) -> tuple[torch.Tensor, torch.Tensor, Segment]:
    """Keys of which every query sees the first `before`, then the queries' own, then free ones."""
    q, _, segment = problem(replace(case, keys=before + case.queries + free))
    pos = torch.arange(before + case.queries + free).int().expand(case.rows, case.kv_heads, -1).clone()
    pos[..., :before] = pos[..., :before].flip(-1)
    pos[..., before + case.queries :] = -1
    q_pos = torch.arange(before, before + case.queries).int().expand(case.rows, -1)
    return q, q_pos, Segment(segment.k, segment.v, pos, None, before, case.queries)


@pytest.mark.parametrize("heads", ["mean", "layer"])
@pytest.mark.parametrize("case", SUITED.values(), ids=SUITED)
def test_out_and_mass_are_those_of_the_formulas(case: Case, heads: Heads) -> None:
    q, q_pos, segment = problem(case)
    parts = split(segment, *((case.keys // 3,) if case.keys > 1 else ()))
    observation = Observation(Statistic.MASS, weights(q_pos), heads=heads)
    assert suits(q, parts, case.geometry, observation)
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    out, received = attend_fused(q, q_pos, parts, case.geometry, observation)
    assert_parity("out", out, expected.out, TOLERANCE[case.dtype])
    shares = naive.received(expected.probability, weights(q_pos), case.kv_heads, heads)
    assert_parity("mass", torch.cat(received, -1), shares, TOLERANCE[case.dtype])


def test_the_kernel_of_a_gpu_is_called_as_torch_has_it() -> None:
    """On tensors without numbers, of whose shapes torch's own operation is asked."""
    q, k = torch.empty(2, 3, 5, 16, device="meta").half(), torch.empty(2, 3, 9, 16, device="meta").half()
    for is_causal in (False, True):
        keys = fused_attention._Keys(k, k, is_causal)
        out, lse = fused_attention._fused(q, k, k, keys, 0.25)
        assert (out.shape, lse.shape, lse.dtype) == (q.shape, q.shape[:3], torch.float32)


def wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return q, torch.zeros(q.shape[:3])


def lacking(*_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise RuntimeError("no available kernel")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_kernel_serves_where_it_is_there_and_right(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    asked = (torch.device("cpu"), dtype, 32)
    serves.cache_clear()
    assert serves(*asked)
    for kernel in (wrong, lacking):
        serves.cache_clear()
        monkeypatch.setattr(fused_attention, "_kernel", kernel)
        assert not serves(*asked)
    serves.cache_clear()


@pytest.mark.parametrize("elements", [1, 100, 1 << 20])
@pytest.mark.parametrize("queries", [None, 4])
@pytest.mark.parametrize(("before", "free"), [(0, 0), (13, 0), (13, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_keys_in_order_need_no_positions(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, before: int, free: int, queries: int | None, elements: int
) -> None:
    case = Case(queries=9, dtype=dtype)
    q, q_pos, segment = in_order(case, before, free)
    observation = replace(mass(q_pos), queries=queries)
    if queries is not None:
        observation.weight[:, :-queries] = 0
    expected = naive.attention(q, q_pos, [segment], case.geometry)
    shares = naive.received(expected.probability, observation.weight, case.kv_heads)
    blind = replace(segment, pos=torch.full_like(segment.pos, -2))
    monkeypatch.setattr(fused_attention, "STATISTIC_ELEMENTS", elements)
    out, received = attend_fused(q, q_pos, [blind], case.geometry, observation)
    assert_parity("out", out, expected.out, TOLERANCE[dtype])
    assert_parity("mass", received[0], shares, TOLERANCE[dtype])


@pytest.mark.parametrize("elements", [1, 300])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    case = Case(queries=17, keys=40, sink=True, window=20)
    q, q_pos, segment = problem(case)
    expected = attend_fused(q, q_pos, split(segment, 15), case.geometry, mass(q_pos))
    monkeypatch.setattr(reference, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(fused_attention, "STATISTIC_ELEMENTS", elements)
    actual = attend_fused(q, q_pos, split(segment, 15), case.geometry, mass(q_pos))
    assert_parity("out", actual[0], expected[0])
    assert_parity("mass", torch.cat(actual[1], -1), torch.cat(expected[1], -1))


def test_a_query_that_sees_nothing_gets_zero_and_gives_nothing() -> None:
    case = Case()
    q, q_pos, segment = problem(case)
    nowhere = torch.full_like(q_pos, -1)
    out, received = attend_fused(q, nowhere, [segment], case.geometry, Observation(Statistic.MASS, weights(q_pos)))
    assert_parity("out", out, torch.zeros_like(out))
    assert_parity("mass", received[0], torch.zeros_like(received[0]))


@pytest.mark.parametrize("elements", [64, 1 << 20])
def test_codes_are_widened(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    case = Case(k_dim=64, v_dim=64, dtype=torch.float32, queries=9)
    q, q_pos, segment = in_order(case, 14)
    k, v = (quantise(hadamard(x), 4, 32) for x in (segment.k, segment.v))
    coded = replace(segment, k=k, v=v)
    expected, shares = attend_segments(q, q_pos, [coded], case.geometry, mass(q_pos))
    monkeypatch.setattr(reference, "TILE_ELEMENTS", elements)
    out, received = attend_fused(q, q_pos, [coded], case.geometry, mass(q_pos))
    assert_parity("out", out, expected, 4e-6)
    assert_parity("mass", received[0], shares[0], 4e-6)


def test_bfloat16_is_as_near_to_float32_as_one_rounding_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_attention, "IS_FAST", False)
    case = Case(k_dim=64, v_dim=64, dtype=torch.bfloat16, queries=40)
    q, q_pos, segment = in_order(case, 90)
    exact, shares = attend_segments(q.float(), q_pos, [segment], case.geometry, mass(q_pos))
    out, received = attend_fused(q, q_pos, [segment], case.geometry, mass(q_pos))
    assert out.dtype == torch.bfloat16
    assert_parity("out", out, exact, 1e-2)
    assert_parity("mass", received[0], shares[0], 1e-4)  # in half precision the kernel's exponential is approximate


@pytest.mark.parametrize(
    "case, heads, kind",
    [
        (Case(queries=1), "mean", Statistic.MASS),
        (Case(softcap=2.0), "mean", Statistic.MASS),
        (Case(v_dim=4), "mean", Statistic.MASS),
        (Case(), "max", Statistic.MASS),
        (Case(), "mean", Statistic.BELOW),
    ],
)
def test_what_needs_logits_is_left_to_the_reference(case: Case, heads: Heads, kind: Statistic) -> None:
    q, q_pos, segment = problem(case)
    assert not suits(q, [segment], case.geometry, Observation(kind, weights(q_pos), heads=heads))
