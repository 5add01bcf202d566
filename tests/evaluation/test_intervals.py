"""Intervals hold what they should: Wilson's against known values, the bootstrap against clusters and chance."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.evaluation.summary import LEAST_DRAWN, bootstrap, wilson


def mean(items: object) -> float:
    values = list(items)  # type: ignore[call-overload]
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_has_the_published_values(right: int, asked: int, low: float, high: float) -> None:
    found = wilson(right, asked)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(asked=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_holds_the_share_and_mirrors_for_wrong_answers(asked: int, share: float) -> None:
    right = round(share * asked)
    found, mirrored = wilson(right, asked), wilson(asked - right, asked)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


@given(st.integers(1, 500))
def test_more_questions_make_wilsons_interval_narrower(asked: int) -> None:
    few, many = wilson(asked, 2 * asked), wilson(4 * asked, 8 * asked)
    assert many.high - many.low < few.high - few.low


def test_nothing_asked_is_no_number() -> None:
    assert all(map(math.isnan, (wilson(0, 0).value, bootstrap([], mean).low, bootstrap([], mean).value)))


def test_a_bootstrap_is_a_function_of_its_seed() -> None:
    items = [1.0, 2.0, 5.0, 9.0]
    first = bootstrap(items, mean, 3)
    assert first == bootstrap(items, mean, 3)
    assert first.low < first.value < first.high


@pytest.mark.parametrize("count", [1, LEAST_DRAWN - 1])
def test_few_items_have_no_interval(count: int) -> None:
    found = bootstrap([1.0] * count, mean)
    assert found.value == 1.0 and math.isnan(found.low) and math.isnan(found.high)


@given(st.lists(st.floats(-100, 100), min_size=LEAST_DRAWN, max_size=12))
def test_a_bootstrap_stays_between_the_extremes(items: list[float]) -> None:
    found = bootstrap(items, mean)
    assert min(items) - 1e-9 <= found.low <= found.high <= max(items) + 1e-9


def test_questions_that_stand_and_fall_together_make_the_interval_wider() -> None:
    pairs = [(1.0, 1), (0.0, 1)] * 40
    clusters = [(8.0, 8), (0.0, 8)] * 5  # the same 80 questions and share

    def share(items: object) -> float:
        drawn = list(items)  # type: ignore[call-overload]
        return sum(right for right, _ in drawn) / sum(count for _, count in drawn)

    alone, together = bootstrap(pairs, share), bootstrap(clusters, share)
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_bootstraps_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(0)
    held = 0
    for trial in range(60):
        found = bootstrap([rng.gauss(3.0, 1.0) for _ in range(40)], mean, trial)
        held += found.low <= 3.0 <= found.high
    assert held >= 51  # of 95 % of 60; fewer has a probability of 0.2 %
