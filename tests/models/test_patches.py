"""Patches know the code that they were written from, whatever is written beside it."""

from __future__ import annotations

from importlib import import_module
from types import FunctionType
from typing import Any

import pytest

from kvlite.models.patches import BODIES, HEADS, PATCHES, code_hash

SOURCES = {patch.source: (patch.code,) for patch in PATCHES} | {name: (code,) for name, code in BODIES.items()} | HEADS


@pytest.mark.parametrize(("source", "codes"), SOURCES.items(), ids=SOURCES)
def test_the_code_that_a_patch_was_written_from_is_the_installed_one(source: str, codes: tuple[str, ...]) -> None:
    """A failure means that transformers has changed: read it, adapt the patch, and store the hash of the new code."""
    family, _, name = source.partition(".")
    kind = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), name)
    assert code_hash(kind.forward) in codes


def _shift(x: Any) -> Any:
    return x + 1


def test_names_annotations_and_docstrings_do_not_count() -> None:
    def first(x: Any) -> Any:
        """One."""
        return x + "s"

    def second(x: str) -> str:
        # another comment
        return x + "s"

    assert code_hash(first) == code_hash(second) is not None


def test_other_constants_do() -> None:
    def first(x: Any) -> Any:
        return x + "s"

    def second(x: Any) -> Any:
        return x + "t"

    assert code_hash(first) != code_hash(second)


def test_the_functions_that_are_called_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(x: Any) -> Any:
        return _shift(x)

    def calls_too(x: Any) -> Any:
        return _shift(x)

    before = code_hash(calls)

    def shifted(x: Any) -> Any:
        return x + 2

    monkeypatch.setitem(calls_too.__globals__, "_shift", shifted)
    assert code_hash(calls_too) != before


def test_what_has_no_source_has_no_hash() -> None:
    made = FunctionType(compile("x", "<made>", "eval"), {})
    assert code_hash(made) is None
    assert code_hash(len) is None
