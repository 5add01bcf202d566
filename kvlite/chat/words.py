"""Words on a terminal: their columns, their styles as SGR codes, and lines that they fit in, as they come."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvlite.record.table import width_of

WAITS = 400  # characters without an end of a word that are held; more are shown as they are

Styled = tuple[str, str]
"""Text and the SGR codes of its style; no codes for none."""


def clipped(text: str, width: int) -> str:
    """`text`, or its beginning and `…` where it takes more than `width` columns."""
    if width_of(text) <= width:
        return text
    start = text
    while width_of(start) > width - 1:
        start = start[: len(start) - max(1, (width_of(start) - width) // 2)]
    return f"{start}…"


def sgr(text: str, style: str) -> str:
    """`text` between the codes of its style and the end of them."""
    return f"\x1b[{style}m{text}\x1b[0m" if style and text else text


def is_wide(character: str) -> bool:
    """True of a character of two columns, beside which lines may break: Chinese, Japanese, Korean, emoji."""
    return unicodedata.east_asian_width(character) in "WF"


def _begins_word(character: str) -> bool:
    """False of what belongs to the character before it: marks, joiners, closing punctuation."""
    return unicodedata.category(character) not in {"Mn", "Me", "Mc", "Cf", "Sk", "Pe", "Pf", "Po"}


def may_break(text: str, end: int) -> bool:
    """True where a line may end after `end` characters of `text`, whatever follows it."""
    if text[end - 1] == " ":
        return True
    return end < len(text) and is_wide(text[end - 1]) and _begins_word(text[end])


@dataclass(slots=True)
class Wrapper:
    """Words into lines of at most `width` columns; later lines begin with `indent`, the first where `column` says."""

    width: int
    indent: str = ""
    indent_width: int = 0
    column: int = 0
    _space: str = ""

    def begin(self, first: str, indent: str, width: int) -> str:
        """Begin a line with `first`, and those that go on with it with `indent`; both may hold SGR codes."""
        self.width, self.indent = width, indent
        self.indent_width = width_of(without_sgr(indent))
        self.column, self._space = width_of(without_sgr(first)), ""
        return first

    def add(self, pieces: list[Styled]) -> str:
        """Write words, broken into lines where they need to be; white space at a break is dropped."""
        return "".join(map(self._word, _words(pieces)))

    def _word(self, word: list[Styled]) -> str:
        text = "".join(part for part, _ in word)
        if text.isspace():
            self._space += text.replace("\t", "    ")
            return ""
        size, gap = width_of(text), len(self._space)
        space, self._space = self._space, ""
        if self.column + gap + size <= self.width:
            self.column += gap + size
            return space + "".join(sgr(*part) for part in word)
        written = self._break() if self.column > self.indent_width else ""
        return written + "".join(map(self._fitted, word))

    def _fitted(self, part: Styled) -> str:
        """A part of a word that alone may be longer than a line."""
        from rich.cells import chop_cells

        text, style = part
        if self.column + width_of(text) <= self.width:
            self.column += width_of(text)
            return sgr(text, style)
        written = self._break() if self.width - self.column < 2 and self.column > self.indent_width else ""
        first = chop_cells(text, max(2, self.width - self.column))[0]
        rest = text[len(first) :]
        lines = [first, *(chop_cells(rest, max(2, self.width - self.indent_width)) if rest else [])]
        for number, line in enumerate(lines):
            written += (self._break() if number else "") + sgr(line, style)
            self.column += width_of(line)
        return written

    def _break(self) -> str:
        self.column = self.indent_width
        return f"\n{self.indent}"


def without_sgr(text: str) -> str:
    """`text` as it is seen."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _words(pieces: list[Styled]) -> Iterator[list[Styled]]:
    """Words with their styles, and the white space between them; a wide character is a word."""
    word: list[Styled] = []
    was_space = was_wide = False
    for text, style in pieces:
        start = 0
        for at, character in enumerate(text):
            is_space = character.isspace() and character != "\N{NO-BREAK SPACE}"
            breaks = is_space != was_space or ((was_wide or is_wide(character)) and _begins_word(character))
            if breaks and (word or at > start):
                yield [*word, (text[start:at], style)] if at > start else word
                word, start = [], at
            was_space, was_wide = is_space, is_wide(character) or (was_wide and not _begins_word(character))
        if start < len(text):
            word.append((text[start:], style))
    if word:
        yield word


class WordStream:
    """Text as it comes, in words that fit lines `width()` columns long, all in one style."""

    def __init__(self, width: Callable[[], int], style: str = "") -> None:
        self._width, self._style = width, style
        self._held = ""
        self._wrapper = Wrapper(width())

    def push(self, text: str) -> str:
        """Take more text, without control characters, and write the words that are complete."""
        *lines, self._held = (self._held + text).split("\n")
        written = "".join(f"{self._written(line)}\n{self._begin()}" for line in lines)
        held = self._held
        size = len(held) if len(held) > WAITS else 0
        size = next((end for end in range(len(held), 0, -1) if may_break(held, end)), size)
        self._held = held[size:]
        return written + self._written(held[:size])

    def finish(self) -> str:
        """Write what is held, and end the line."""
        written = self._written(self._held)
        is_open = self._wrapper.column > 0
        self._held = ""
        self._begin()
        return f"{written}\n" if is_open else written

    def _written(self, text: str) -> str:
        return self._wrapper.add([(text, self._style)])

    def _begin(self) -> str:
        return self._wrapper.begin("", "", max(10, self._width() - 1))
