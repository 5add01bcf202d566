"""A suite's tables: rows that can be told apart, figures with their intervals."""

from __future__ import annotations

from kvlite.evaluation.view import eval_page, suite_table
from tests.evaluation.results import answered, scored, summary


def test_rows_of_one_policy_and_budget_are_told_apart_in_every_piece() -> None:
    others = {("window", "50%"): scored([0.5] * 4), ("window", "20%"): scored([0.9] * 4)}
    for piece in suite_table(summary(scored([0.0] * 4), others, "kl")).pieces(60):
        assert len({row[:2] for row in piece.rows}) == 3


def test_a_figure_that_is_no_number_is_a_dash() -> None:
    assert "-" in suite_table(summary(answered([[]]), {})).rows[0]


def test_the_page_has_a_section_per_suite_with_every_plot_and_table() -> None:
    recall = summary(
        answered([[True] * 4] * 6),
        {
            (policy, budget): answered([[True, False] * 2] * 6)
            for policy in ("window", "h2o")
            for budget in ("20%", "50%")
        },
    )
    kl = summary(scored([0.0] * 4), {("window", "50%"): scored([0.3, 0.1, 0.2, 0.9])}, "kl")
    versions = {"kvlite": "1", "torch": "2", "transformers": "3"}
    about = {"model": "<b>model</b>", "dtype": "float32", "quant": "none", "device": "cpu", "versions": versions}
    page = eval_page(about, (recall, kl))
    assert "&lt;b&gt;model&lt;/b&gt;" in page
    assert [page.count(f"<{tag}") for tag in ("h2", "figure>", "table>")] == [2, 4, 2]
