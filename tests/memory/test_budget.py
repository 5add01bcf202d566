"""What a KV budget may look like."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.errors import UsageError
from kvlite.memory.budget import Budget, BudgetKind

BYTES, SHARE, TOKENS = BudgetKind.BYTES, BudgetKind.SHARE, BudgetKind.TOKENS


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2GB", Budget(BYTES, 2 * 10**9)),
        ("2GiB", Budget(BYTES, 2**31)),
        ("512MB", Budget(BYTES, 512 * 10**6)),
        (" 512 mb ", Budget(BYTES, 512 * 10**6)),
        ("1.5GB", Budget(BYTES, 1_500_000_000)),
        ("640kB", Budget(BYTES, 640_000)),
        ("1000000B", Budget(BYTES, 10**6)),
        ("25%", Budget(SHARE, Fraction(1, 4))),
        ("12.5 %", Budget(SHARE, Fraction(1, 8))),
        ("100%", Budget(SHARE, Fraction(1))),
        ("8000tok", Budget(TOKENS, 8000)),
        ("8000 tokens", Budget(TOKENS, 8000)),
        ("1TOK", Budget(TOKENS, 1)),
        ("auto", Budget(BudgetKind.AUTO)),
        ("Full", Budget(BudgetKind.FULL)),
    ],
)
def test_accepted_forms(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "2", "2000000000", "2G", "2 giga", "GB", "two GB", "-2GB", "+2GB", "2,5GB", "1e9B", "0x10B", "2GB 3GB",
        "0GB", "0.1B", "0tok", "0%", "101%", "-5%", "%", "1/4", "infGB", "nan%", "8000.5tok", "8000t", "max", "none",
        "99999999999TB", "9" * 5000 + "GB", "3000000000tok", "2GB\x00", "２GB",
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line_with_what_to_give(text: str) -> None:
    with pytest.raises(UsageError, match="give ") as refused:
        Budget.parse(text)
    assert "\n" not in str(refused.value)


@given(
    st.one_of(
        st.builds(Budget, st.just(BYTES), st.integers(1, 2**63 - 1)),
        st.builds(Budget, st.just(TOKENS), st.integers(1, 2**31 - 1)),
        st.builds(lambda n: Budget.parse(f"{n / 1000}%"), st.integers(1, 100_000)),
        st.sampled_from([Budget(BudgetKind.AUTO), Budget(BudgetKind.FULL)]),
    )
)
def test_a_budget_written_out_reads_back_the_same(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget
