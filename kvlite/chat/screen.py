"""Answers drawn on a terminal: Markdown as it comes, thinking dimmed or told in a line, the live lines below."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvlite.chat.markdown import MarkdownStream
from kvlite.chat.words import WordStream
from kvlite.console import strip_controls

if TYPE_CHECKING:
    from kvlite.chat.live import LiveLines
    from kvlite.console import Console


class Screen:
    """Draws answers, one after another, above the `lines`; as Markdown, or in words that fit."""

    def __init__(self, console: Console, lines: LiveLines, *, draws_markdown: bool, has_color: bool) -> None:
        self.lines = lines
        self._console = console
        self._draws_markdown, self._has_color = draws_markdown, has_color
        self._answer: MarkdownStream | WordStream = WordStream(self._width)
        self._thinking = WordStream(self._width, "2")
        self._thinks_since: float | None = None
        self._shows_thinking = False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw one answer within the block."""
        markdown = MarkdownStream(self._width, has_color=self._has_color)
        self._answer = markdown if self._draws_markdown else WordStream(self._width)
        with self.lines.shown():
            try:
                yield
            finally:
                self._end_thinking()
                self.lines.write(self._answer.finish())

    def show(self, text: str, *, is_thinking: bool, shows_thinking: bool) -> None:
        """Draw a piece of the answer, or of the thinking before it."""
        text = strip_controls(text)
        if is_thinking:
            self._thinks_since = self._thinks_since or time.monotonic()
            self._shows_thinking = shows_thinking
            self.lines.activity = "thinking"
            self.lines.write(self._thinking.push(text) if shows_thinking else "")
        else:
            self._end_thinking()
            self.lines.write(self._answer.push(text))

    def _end_thinking(self) -> None:
        if self._thinks_since is None:
            return
        seconds = time.monotonic() - self._thinks_since
        self._thinks_since, self.lines.activity = None, ""
        if self._shows_thinking:
            self.lines.write(self._thinking.finish())
        self._console.note(f"thought for {seconds:.1f} s")

    def _width(self) -> int:
        return self.lines.width
