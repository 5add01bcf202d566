"""The listener to what happens while a model is loaded and its cache is made: a console, a function or nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    """Three levels of one-line messages; `kvlite.console.Console` has them."""

    def note(self, text: str) -> None:
        """Take something useful to know."""

    def detail(self, text: str) -> None:
        """Take something that few want to know."""

    def warn(self, text: str) -> None:
        """Take something that is not as it should be."""


class Told:
    """Passes notes and warnings to `say`; to nobody where that is None."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda text: None)

    def note(self, text: str) -> None:
        """Pass on a note."""
        self._say(text)

    def detail(self, text: str) -> None:
        """Drop a detail."""

    def warn(self, text: str) -> None:
        """Pass on a warning, marked as one."""
        self._say(f"warning: {text}")
