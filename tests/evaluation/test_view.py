"""The table on a terminal: in pieces that fit, none of which loses a column or what a row is of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvlite.evaluation.view import Table, table
from tests.evaluation.results import answered, scored, summary

CELLS = st.text("ab", min_size=1, max_size=12)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    count = draw(st.integers(3, 9))
    row = st.lists(CELLS, min_size=count, max_size=count).map(tuple)
    columns = tuple(f"{draw(CELLS)}{index}" for index in range(count))
    return Table("t", "", columns, tuple(draw(st.lists(row, max_size=4))), fixed=2)


def width_of(shown: Table) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(shown.columns, *shown.rows, strict=True)) - 2


@given(tables(), st.integers(10, 120))
def test_pieces_hold_every_column_once_behind_what_the_rows_are_of(shown: Table, width: int) -> None:
    blocks = shown.blocks(width)
    assert all(block.columns[:2] == shown.columns[:2] for block in blocks)
    assert tuple(column for block in blocks for column in block.columns[2:]) == shown.columns[2:]
    for number, row in enumerate(shown.rows):
        assert tuple(cell for block in blocks for cell in block.rows[number][2:]) == row[2:]


@given(tables(), st.integers(10, 120))
def test_a_piece_fits_unless_it_is_of_a_single_column(shown: Table, width: int) -> None:
    assert all(width_of(block) <= width or len(block.columns) == 3 for block in shown.blocks(width))


@given(tables())
def test_in_a_pipe_a_table_is_in_one_piece(shown: Table) -> None:
    assert shown.blocks(None) == [shown]


def test_rows_of_one_policy_and_budget_are_told_apart_in_every_piece() -> None:
    others = {("window", "50%", 512): scored([0.5] * 4), ("window", "50%", 1): scored([0.9] * 4)}
    for block in table(summary(scored([0.0] * 4), others, "kl")).blocks(60):
        assert len({row[:3] for row in block.rows}) == 3


def test_a_figure_that_is_no_number_is_a_dash() -> None:
    assert "-" in table(summary(answered([[]]), {})).rows[0]
