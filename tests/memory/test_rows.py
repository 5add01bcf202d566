"""Rows of a batch: inside the budget, equal, and as large as if each were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.errors import BudgetTooSmall
from kvlite.memory.budget import Budget
from kvlite.memory.fit import DEFAULT_ROW_SLOTS, Fit
from kvlite.memory.format import slot_format
from kvlite.memory.plan import CachePlan, CacheSpec
from kvlite.memory.shape import LayerShape, ModelShape

SHAPE = ModelShape("llama", (LayerShape("full", 2, 32, 32),) * 3, 64, 4, 100, 128, 8192, "rotary", "default", "float32")


def fit(per_sequence: str | None = None, most_rows: int = 16, free_bytes: int = 10**9) -> Fit:
    """A device with `free_bytes` left for the cache."""
    spec = CacheSpec(slot_format("auto", "float32"), state_bytes_per_slot=4, protected_slots=9)
    row_budget = Budget.parse(per_sequence) if per_sequence else None
    found = Fit(SHAPE, spec, None, "none", "cpu", None, most_rows, row_budget)
    return replace(found, free_bytes=free_bytes + found.memory(None).total_bytes)


def rows(total: str, per_sequence: str | None = None, most_rows: int = 16, free_bytes: int = 10**9) -> CachePlan:
    """Plan with `free_bytes` left for the cache."""
    return fit(per_sequence, most_rows, free_bytes).cache(Budget.parse(total))


@given(st.integers(100_000, 10**8), st.integers(1, 64))
def test_rows_stay_inside_the_budget(num_bytes: int, most_rows: int) -> None:
    plan = rows(f"{num_bytes}B", most_rows=most_rows)
    assert plan.reserved_bytes <= plan.budget_bytes == num_bytes
    assert 1 <= plan.rows <= most_rows


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_slots_of_a_row_do_not_depend_on_how_many_there_are(one: int, other: int) -> None:
    assert rows("20MB", most_rows=one).slots == rows("20MB", most_rows=other).slots


def test_a_large_budget_is_many_rows_not_long_ones() -> None:
    plan = rows("100MB")
    assert (plan.rows, plan.slots) == (16, DEFAULT_ROW_SLOTS)


def test_auto_gives_every_row_there_may_be_where_memory_allows() -> None:
    plan = rows("auto")
    assert (plan.rows, plan.slots) == (16, DEFAULT_ROW_SLOTS)
    assert plan.budget_bytes == plan.reserved_bytes
    tight = rows("auto", free_bytes=10_000_000)
    assert tight.rows < 16
    assert tight.reserved_bytes <= 9_000_000


def test_full_rows_hold_the_whole_window() -> None:
    plan = rows("full", free_bytes=100_000_000)
    assert plan.slots == rows("full", most_rows=1).slots == 7168
    assert plan.rows > 1
    assert plan.reserved_bytes <= 100_000_000


def test_one_sequences_budget_is_honoured() -> None:
    assert rows("10MB", "100tok").slots == 100
    assert rows("10MB", "1MB").reserved_bytes <= 10_000_000
    with pytest.raises(BudgetTooSmall, match="give a smaller --kv-per-seq"):
        rows("1MB", "2MB")
    with pytest.raises(BudgetTooSmall, match=r"one sequence takes .* give a smaller --kv-per-seq"):
        rows("1MB", "4000tok")


def test_a_rows_budget_is_its_own_where_one_is_given() -> None:
    assert rows("10MB", "1MB", most_rows=4).row_budget_bytes == 1_000_000
    assert rows("10MB", most_rows=4).row_budget_bytes == 10_000_000 // rows("10MB", most_rows=4).rows


def test_where_memory_is_the_limit_no_larger_budget_is_asked_for() -> None:
    with pytest.raises(BudgetTooSmall, match="free some memory"):
        rows("full", free_bytes=12_500_000)


@given(st.integers(100_000, 10**8), st.integers(1, 20_000), st.integers(1, 64))
def test_rows_for_lines_are_as_long_as_those_need(num_bytes: int, slots: int, lines: int) -> None:
    plan = fit().rows(Budget.parse(f"{num_bytes}B"), slots, lines)
    assert plan.reserved_bytes <= plan.budget_bytes == num_bytes
    assert 1 <= plan.rows <= min(16, lines)
    longest = fit().rows(Budget.parse(f"{num_bytes}B"), 10**6, 1).slots
    assert plan.slots == min(longest, max(9, slots))


def test_no_row_is_longer_than_its_own_budget() -> None:
    budget = Budget.parse("10MB")
    assert [fit("100tok").rows(budget, slots, 4).slots for slots in (50, 100, 5000)] == [50, 100, 100]
    with pytest.raises(BudgetTooSmall, match="give a smaller --kv-per-seq"):
        fit("2MB").rows(Budget.parse("1MB"), 50, 4)


def test_rows_for_few_lines_leave_the_rest_of_memory_alone() -> None:
    plan = fit().rows(Budget.parse("auto"), 50, 4)
    assert (plan.rows, plan.slots) == (4, 50)
    assert plan.reserved_bytes == plan.budget_bytes < 10**6
