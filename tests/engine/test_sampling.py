"""Sampling: exact where greedy, seeded everywhere, filters that keep what they say."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvlite.engine.request import Sampling
from kvlite.engine.sampling import INVALID, Draw, sample, uniform

LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.5, 0.4, -3.0])


def draws(sampling: Sampling, count: int) -> Counter[int]:
    batch = LOGITS.expand(count, -1)
    return Counter(sample(batch, [Draw(sampling, index, ()) for index in range(count)]))


def test_greedy_takes_the_maximum_beside_sampled_rows() -> None:
    batch = LOGITS.expand(3, -1)
    hot = Draw(Sampling(temperature=50.0, seed=3), 0, ())
    ids = sample(batch, [Draw(Sampling(), 0, ()), hot, Draw(Sampling(seed=9), 5, ())])
    assert ids[0] == ids[2] == 1


def test_frequencies_follow_the_softmax() -> None:
    seen = draws(Sampling(temperature=1.0, seed=7), 20_000)
    expected = LOGITS.softmax(-1)
    for token, probability in enumerate(expected.tolist()):  # 5 standard deviations: one false alarm in 300,000
        assert abs(seen[token] / 20_000 - probability) < 5 * (probability * (1 - probability) / 20_000) ** 0.5


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(draws(Sampling(temperature=5.0, top_k=2), 2000)) == {1, 3}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    likeliest = LOGITS.softmax(-1).max().item()
    assert set(draws(Sampling(temperature=1.0, top_p=likeliest - 0.01), 500)) == {1}
    assert set(draws(Sampling(temperature=1.0, top_p=likeliest + 0.01), 2000)) == {1, 3}


def test_min_p_drops_what_is_far_below_the_likeliest() -> None:
    assert set(draws(Sampling(temperature=1.0, min_p=0.5), 2000)) == {1, 3}


def test_a_draw_rounded_up_to_the_whole_stays_inside_the_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvlite.engine.sampling.uniform", lambda seed, index: 1.0)
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    assert sample(logits, [Draw(Sampling(temperature=1.0, top_k=1), 0, ())]) == [int(logits.argmax())]


def test_what_is_no_number_is_invalid() -> None:
    batch = torch.stack([LOGITS, torch.full_like(LOGITS, torch.nan), torch.full_like(LOGITS, torch.inf)])
    assert sample(batch, [Draw(Sampling(), 0, ())] * 3) == [1, INVALID, INVALID]


def test_the_repetition_penalty_pushes_used_ids_down() -> None:
    used = Draw(Sampling(repetition_penalty=2.0), 0, {1})
    assert sample(LOGITS[None].clone(), [used]) == [3]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    rows = [Draw(Sampling(temperature=0.8, top_p=0.9, seed=row), 4, ()) for row in range(8)]
    assert sample(logits, rows) == [sample(logits[row : row + 1], [rows[row]])[0] for row in range(8)]


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_uniform_is_a_function_of_seed_and_index(seed: int, index: int) -> None:
    assert 0.0 <= uniform(seed, index) < 1.0
    assert uniform(seed, index) == uniform(seed, index)
    assert uniform(seed, index) != uniform(seed, index + 1)


def test_uniform_is_spread_evenly() -> None:
    counts = Counter(int(uniform(3, index) * 10) for index in range(10_000))
    assert all(abs(counts[decile] - 1000) < 150 for decile in range(10))


@pytest.mark.parametrize("temperature", [1e-4, 1.0, 100.0])
def test_extreme_temperatures_give_valid_ids(temperature: float) -> None:
    assert all(0 <= token < 6 for token in draws(Sampling(temperature=temperature), 50))


def test_biases_and_penalties_shift_the_logits_of_their_ids_alone() -> None:
    batch = LOGITS.expand(5, -1)
    plain, said = Draw(Sampling(), 0, ()), (1, 3, 1)
    shifted = [
        Draw(Sampling(logit_bias=((4, 1.7), (5, 100.0), (5, 0.0))), 0, ()),
        Draw(Sampling(presence_penalty=0.6), 3, (), answer=said),  # 2.0 - 0.6 and 1.5 - 0.6
        Draw(Sampling(frequency_penalty=0.6), 3, (), answer=said),  # 2.0 - 1.2 and 1.5 - 0.6
        Draw(Sampling(frequency_penalty=2.0, presence_penalty=2.0), 3, (), answer=said),
    ]
    assert sample(batch, [plain, *shifted]) == [1, 4, 1, 3, 4]
    assert torch.equal(batch[0], LOGITS)
