"""Numbers by distance are the questions sorted; what can be guessed counts for none."""

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
    assert sum(count for _, count in line.samples) == right  # of the full cache's answers


def test_a_question_that_can_be_guessed_counts_for_nobody() -> None:
    found = summary(answered([[True] * 4], guessed=[0]), {("window", "50%"): answered([[True, False, True, True]])})
    assert [line.count for line in found.lines] == [3, 3]
    assert found.lines[1].figures["of_full"].value == pytest.approx(2 / 3)
    assert found.guessed == 1


def test_of_full_is_over_what_the_full_cache_knew() -> None:
    found = summary(answered([[True, True, False, False]]), {("window", "50%"): answered([[True, False, True, False]])})
    figures = found.lines[1].figures
    assert (figures["right"].value, figures["of_full"].value, figures["nll"].value) == (0.5, 0.5, 1.0)
    assert figures["free_of_full"].value == 0.5


def test_the_json_holds_every_answer_of_every_variant_with_its_kind() -> None:
    found = summary(answered([[True] * 4]), {("window", "50%"): answered([[True, False, True, False]])})
    told = eval_json({"model": "m"}, (found,))
    _, window = told["suites"][0]["variants"]
    assert [(answer["back"], answer["right"]) for answer in window["answers"]] == [
        (100, True),
        (200, False),
        (300, True),
        (400, False),
    ]
