"""Show the pieces of an answer: text on stdout, thinking on stderr or nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.text.stream import Piece


class Display:
    """An answer on the screen; `end` closes the line that it leaves open."""

    def __init__(self, console: Console, shows_thinking: bool) -> None:
        self._console = console
        self._shows_thinking = shows_thinking
        self._thinking_open = False
        self._line_open = False

    def show(self, piece: Piece) -> None:
        """Write a piece at once."""
        if not piece.thinking:
            self._end_thinking()
            self._console.answer(piece.text)
            self._line_open = not piece.text.endswith("\n") if piece.text else self._line_open
        elif self._shows_thinking:
            self._console.aside(piece.text)
            self._thinking_open = not piece.text.endswith("\n")
        elif self._console.has_live_stderr and not self._console.quiet:
            self._console.show_status("thinking …")

    def end(self) -> None:
        """End the last line of the answer."""
        self._end_thinking()
        if self._line_open:
            self._console.answer("\n")
            self._line_open = False

    def _end_thinking(self) -> None:
        if self._thinking_open:
            self._console.aside("\n")
            self._thinking_open = False
