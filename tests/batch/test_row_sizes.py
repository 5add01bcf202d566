"""Rows are as long as the lines need, and short lines do not pay for long ones."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch.row_sizes import MOST_SIZES, row_sizes, size_for

MOST = 4096


def rows_in(budget: int, most_rows: int = 256) -> Callable[[int], int]:
    return lambda size: min(most_rows, budget // size)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=200), st.integers(MOST, 10**6))
def test_every_line_has_a_size_that_holds_it_or_the_largest(needs: list[int], budget: int) -> None:
    sizes = row_sizes(needs, MOST, rows_in(budget))
    assert 1 <= len(sizes) <= MOST_SIZES
    assert list(sizes) == sorted(set(sizes))
    assert all(min(need, MOST) <= size_for(need, sizes) <= MOST for need in needs)
    assert sizes[-1] < max(needs) + 32


def test_one_size_where_the_budget_holds_all_the_rows_there_may_be() -> None:
    assert row_sizes([50] * 100 + [2000] * 10, MOST, rows_in(10**6, most_rows=8)) == (2016,)


def test_short_lines_run_together_where_long_rows_are_few() -> None:
    assert row_sizes([60] * 200 + [2000] * 10, MOST, rows_in(8000)) == (64, 2016)


def test_lines_that_differ_little_have_one_size() -> None:
    assert row_sizes(list(range(200, 256)), MOST, rows_in(8000)) == (256,)


def test_a_size_ends_with_what_a_row_may_hold() -> None:
    assert row_sizes([10_000], 500, rows_in(8000)) == (500,)
    assert size_for(10_000, (100, 500)) == 500
