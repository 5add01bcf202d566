"""A table in pieces that fit a terminal, none of which loses a column or the name of a row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvlite.record.table import Table, sparkline

CELLS = st.text("ab", min_size=1, max_size=12)


def test_a_sparkline_fits_and_shows_the_largest() -> None:
    assert sparkline([0, 1, 4, 8], 8) == "▁▁▄█" and sparkline([], 8) == "" and sparkline([0.0], 0) == "▁"
    long = sparkline([0.0] * 900 + [8.0] + [0.0] * 99, 8)
    assert len(long) == 36 and long.count("█") == 1


@st.composite
def tables(draw: st.DrawFn) -> Table:
    count = draw(st.integers(3, 9))
    row = st.lists(CELLS, min_size=count, max_size=count).map(tuple)
    columns = tuple(f"{draw(CELLS)}{index}" for index in range(count))
    return Table(columns, tuple(draw(st.lists(row, max_size=4))), note="n", fixed=2)


def width_of(shown: Table) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(shown.columns, *shown.rows, strict=True)) - 2


@given(tables(), st.integers(10, 120))
def test_pieces_hold_every_column_once_behind_the_fixed_ones(shown: Table, width: int) -> None:
    pieces = shown.pieces(width)
    assert all(piece.columns[:2] == shown.columns[:2] for piece in pieces)
    assert tuple(column for piece in pieces for column in piece.columns[2:]) == shown.columns[2:]
    for number, row in enumerate(shown.rows):
        assert tuple(cell for piece in pieces for cell in piece.rows[number][2:]) == row[2:]


@given(tables(), st.integers(10, 120))
def test_a_piece_fits_unless_it_is_of_a_single_column(shown: Table, width: int) -> None:
    assert all(width_of(piece) <= width or len(piece.columns) == 3 for piece in shown.pieces(width))


@given(tables())
def test_in_a_pipe_a_table_is_in_one_piece(shown: Table) -> None:
    assert shown.pieces(None) == [shown]


def test_a_table_of_one_column_is_in_one_piece() -> None:
    assert Table(("Warnings",), (("a long one",),)).pieces(4) == [Table(("Warnings",), (("a long one",),))]
