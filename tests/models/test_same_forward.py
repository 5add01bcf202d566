"""Code is the same where it does the same, whatever is written beside it."""

from __future__ import annotations

from typing import Any

from kvlite.models.same_forward import same


def test_docstrings_do_not_count_even_where_a_decorator_rewrote_them() -> None:
    def first(x: Any) -> Any:
        """One."""
        return x + "s"

    def second(x: Any) -> Any:
        """Two."""
        return x + "s"

    second.__doc__ = "Three."
    assert same(first, second)


def test_other_constants_do() -> None:
    def first(x: Any) -> Any:
        return x + "s"

    def second(x: Any) -> Any:
        return x + "t"

    assert not same(first, second)
