"""The statistics, and what is known of keys and values without attention, against the formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvlite_kernels import reference
from kvlite_kernels.kinds import Heads, Noise, Statistic
from kvlite_kernels.reference import attend_segments
from kvlite_kernels.statistic import Observation, gumbel
from tests.parity import naive
from tests.parity.compare import assert_parity
from tests.parity.test_reference import CASES, TOLERANCE, Case, problem, split, weights

NOISE = Noise(seed=3, first=1.0, last=2.0, ramp=11, layer=5)
HEADS: tuple[Heads, ...] = ("mean", "max", "layer")


def measured(case: Case, observation: Observation, *at: int) -> tuple[Tensor, Tensor]:
    """Out, and the statistic of all keys, where the keys are in segments split `at`."""
    q, q_pos, segment = problem(case)
    parts = split(segment, *(at or ((case.keys // 3,) if case.keys > 1 else ())))
    out, received = attend_segments(q, q_pos, parts, case.geometry, observation)
    return out, torch.cat(received, -1)


def probability(case: Case) -> Tensor:
    q, q_pos, segment = problem(case)
    return naive.attention(q, q_pos, [segment], replace(case.geometry, sink_logits=None)).probability


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("sink", [False, True])
def test_mass_is_reduced_over_the_heads_a_policy_names(heads: Heads, sink: bool) -> None:
    case = Case(sink=sink)
    q, q_pos, segment = problem(case)
    weight = weights(q_pos)
    expected = naive.attention(q, q_pos, [segment], case.geometry).probability
    _, actual = measured(case, Observation(Statistic.MASS, weight, heads=heads))
    assert_parity("mass", actual, naive.received(expected, weight, case.kv_heads, heads))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_key_is_counted_where_it_is_seen_and_gets_less_than_an_equal_share(case: Case) -> None:
    _, q_pos, _ = problem(case)
    weight = weights(q_pos)
    expected = naive.received(naive.below_equal_share(probability(case)), weight, case.kv_heads)
    _, actual = measured(case, Observation(Statistic.BELOW, weight))
    assert_parity("count", actual, expected, TOLERANCE[case.dtype])


def test_a_query_that_sees_one_key_finds_it_not_below() -> None:
    case = Case(window=1, dtype=torch.float32)
    _, q_pos, _ = problem(case)
    _, actual = measured(case, Observation(Statistic.BELOW, weights(q_pos)))
    assert not actual.any()


@pytest.mark.parametrize(
    "case", [CASES[name] for name in ("plain", "window, softcap", "one key", "fp32", "group of eight")]
)
def test_the_gumbel_softmax_has_a_normaliser_of_its_own(case: Case) -> None:
    _, q_pos, segment = problem(case)
    probable, weight = probability(case), weights(q_pos)
    expected = torch.zeros_like(probable)
    for b, head, t in torch.cartesian_prod(*(torch.arange(size) for size in probable.shape[:3])).tolist():
        query = int(q_pos[b, t])
        places = segment.pos[b, 0 if segment.pos.shape[1] == 1 else head // case.group].tolist()
        temperature = 1 + min(1.0, query / NOISE.ramp)
        seen = [j for j, place in enumerate(places) if probable[b, head, t, j] > 0]
        noised = [
            (math.log(probable[b, head, t, j]) + _noise(3, 5, head, query, places[j])) / temperature for j in seen
        ]
        shares = torch.tensor(noised, dtype=torch.float64).softmax(0)
        expected[b, head, t, seen] = shares
    _, actual = measured(case, Observation(Statistic.GUMBEL, weight, noise=NOISE))
    assert_parity("noisy mass", actual, naive.received(expected, weight, case.kv_heads), 10 * TOLERANCE[case.dtype])


def _noise(*words: int) -> float:
    """The hash of the twin, in Python's integers."""

    def mixed(word: int) -> int:
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    state = mixed(words[0] + 0x9E3779B9)
    for word in words[1:]:
        state = mixed(state ^ word)
    return -math.log(-math.log((state // 2**9 + 0.5) / 2**23))


def test_noise_is_distributed_as_gumbel() -> None:
    pos = torch.arange(400)
    drawn = gumbel(NOISE, 2, pos[None], pos[None, None], torch.float64)
    assert drawn.isfinite().all()
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.01)  # 320,000 draws: a standard error of 0.0023
    assert drawn.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert abs(torch.corrcoef(drawn[0].flatten(1))[0, 1].item()) < 0.02


@pytest.mark.parametrize("other", [replace(NOISE, seed=4), replace(NOISE, layer=6)])
def test_noise_differs_by_seed_and_layer(other: Noise) -> None:
    pos = torch.arange(50)
    one, two = (gumbel(noise, 1, pos[None], pos[None, None], torch.float64) for noise in (NOISE, other))
    assert abs(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1].item()) < 0.1


@pytest.mark.parametrize("kind", [Statistic.MASS, Statistic.BELOW, Statistic.GUMBEL])
@pytest.mark.parametrize("elements", [1, 200, 700, 5000])
def test_tiles_and_segments_do_not_change_a_statistic(
    monkeypatch: pytest.MonkeyPatch, kind: Statistic, elements: int
) -> None:
    case = Case(queries=17, keys=40, sink=True)
    _, q_pos, _ = problem(case)
    for queries in (None, 1, 5, 40):
        weight = weights(q_pos)
        if queries is not None:
            weight = weight * (torch.arange(16, -1, -1) < queries)
        plain, pointed = Observation(kind, weight, noise=NOISE), Observation(kind, weight, noise=NOISE, queries=queries)
        _, whole = measured(case, plain, 39)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "TILE_ELEMENTS", elements)
            assert_parity(f"{queries} queries", measured(case, pointed, 3, 11)[1], whole)
