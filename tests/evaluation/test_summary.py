"""Numbers by distance are the questions sorted; what only the full cache did not reach counts for none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.evaluation.view import eval_json
from tests.evaluation.results import answered, summary

rights = st.lists(st.lists(st.booleans(), max_size=30), min_size=1, max_size=4)


@given(rights)
def test_every_question_counts_once_by_distance(full: list[list[bool]]) -> None:
    line = summary(answered(full), {}).reference
    asked, right = sum(map(len, full)), sum(map(sum, full))
    assert sum(part.count for part in line.parts) == line.count == asked
    assert sum(part.count * part.estimate.value for part in line.parts) == pytest.approx(right)
    assert sum(count for _, count in line.samples) == asked


def test_a_question_that_a_variant_did_not_reach_is_wrong() -> None:
    found = summary(answered([[True] * 4]), {("window", "50%"): answered([[True] * 3], unreached=1)})
    assert found.lines[1].count == 4
    assert found.lines[1].main.value == 0.75
    assert found.unreached == 0


def test_a_question_that_the_full_cache_did_not_reach_counts_for_nobody() -> None:
    found = summary(answered([[True] * 3], unreached=1), {("window", "50%"): answered([[True] * 4])})
    assert [line.count for line in found.lines] == [3, 3]
    assert found.unreached == 1


def test_of_full_is_over_what_the_full_cache_knew() -> None:
    found = summary(answered([[True, True, False, False]]), {("window", "50%"): answered([[True, False, True, False]])})
    figures = found.lines[1].figures
    assert (figures["right"].value, figures["of_full"].value) == (0.5, 0.5)


def test_the_json_holds_every_answer_of_every_variant_with_its_kind() -> None:
    found = summary(answered([[True] * 4]), {("window", "50%"): answered([[True, False, True, False]])})
    told = eval_json({"model": "m"}, (found,))
    _, window = told["suites"][0]["variants"]
    assert [(answer["kind"], answer["right"]) for answer in window["answers"]] == [
        ("name", True),
        ("list", False),
        ("name", True),
        ("list", False),
    ]
