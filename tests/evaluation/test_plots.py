"""What is drawn stands inside its frame, by budget and by distance, and every interval beside its value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvlite.evaluation.view import suite_plots
from kvlite.record.page import HEIGHT, WIDTH
from tests.evaluation.results import answered, summary

BOTH = {
    (policy, budget): answered([[True, right, True, right]] * 6)
    for budget in ("20%", "50%")
    for policy, right in (("window", True), ("h2o", False))
}


def test_there_is_a_plot_by_budget_and_one_by_distance_for_each() -> None:
    titles = [plot.title for plot in suite_plots(summary(answered([[True] * 4] * 6), BOTH))]
    assert titles == ["By budget", "20% = 20.5 kB", "50% = 51.2 kB"]


def test_one_budget_needs_no_plot_by_budget_and_none_still_shows_the_full_cache() -> None:
    full = answered([[True] * 4] * 6)
    assert [plot.title for plot in suite_plots(summary(full, {("window", "50%"): full}))] == ["50% = 51.2 kB"]
    assert [(plot.title, len(plot.curves)) for plot in suite_plots(summary(full, {}))] == [("everything", 1)]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=2, max_size=4), st.integers(1, 12))
def test_every_mark_stands_in_the_frame_with_its_interval_around_it(rights: list[list[bool]], many: int) -> None:
    policies = ("window", "h2o", "tova", "snapkv", "keydiff", "scissorhands")[:many]
    others = {(policy, budget): answered(rights) for policy in policies for budget in ("20%", "50%")}
    for plot in suite_plots(summary(answered(rights), others)):
        for curve in plot.curves:
            for mark in curve.marks:
                assert 0 <= mark.x <= WIDTH
                assert 0 <= mark.high <= mark.y <= mark.low <= HEIGHT


def test_intervals_of_one_place_stand_beside_each_other() -> None:
    by_budget = suite_plots(summary(answered([[True] * 4] * 6), BOTH))[0]
    for column in zip(*(curve.marks for curve in by_budget.curves), strict=True):
        assert len({mark.x for mark in column}) == 3


def test_a_variant_has_one_number_in_all_plots() -> None:
    shown = suite_plots(summary(answered([[True] * 4] * 6), BOTH))
    assert {(curve.name, curve.number) for plot in shown for curve in plot.curves} == {
        ("full", 0),
        ("window", 1),
        ("h2o", 2),
    }
