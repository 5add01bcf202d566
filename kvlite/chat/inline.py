"""Text within a line of Markdown: its styles, and where it may be shown before its end is there. Knows no blocks."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from kvlite.chat.words import WAITS, Styled, may_break

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_STYLES = {"strong": "1", "em": "3", "s": "9", "link": "4"}
_CODE = "36"
_MARKS = re.compile(r"\\.|(`+)|(\*+|_+|~~)|(\[)", re.DOTALL)
_LATEX = re.compile(r"\\(?=[()\[\]])")  # the beginning of a formula, to Markdown an escape
_LINK_END = re.compile(r"\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)|\](?!\()(?=.)", re.DOTALL)


@lru_cache(maxsize=1)
def markdown() -> MarkdownIt:
    """The parser: CommonMark with tables and strikethrough, HTML being text."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def styled(source: str, base: str = "", *, has_color: bool = True) -> list[Styled]:
    """Read one line of Markdown as pieces of text with their styles, `base` being that of all."""
    parsed = markdown().parseInline(_LATEX.sub(r"\\\\", source))[0].children or []
    pieces: list[Styled] = []
    open_styles: list[str] = [base] if base else []
    href, told = "", ""
    for token in parsed:
        kind, _, end = token.type.rpartition("_")
        if token.type == "link_open":
            href, told = str(token.attrs["href"]), ""
        if end == "open" and kind in _STYLES:
            open_styles.append(_STYLES[kind])
        elif end == "close" and kind in _STYLES:
            open_styles.pop()
            if kind == "link" and href not in (told, f"mailto:{told}"):
                pieces.append((f" ({href})", "2"))
        elif token.type == "code_inline":
            code = [*open_styles, _CODE] if has_color else open_styles
            pieces.append((token.content if has_color else f"`{token.content}`", ";".join(code)))
            told += token.content
        elif token.type == "image":
            pieces.append((f"[image: {token.content}] ({token.attrs['src']})", ";".join(open_styles)))
        else:
            text = "\n" if token.type in ("softbreak", "hardbreak") else token.content
            pieces.append((text, ";".join(open_styles)))
            told += text
    return [(text, style) for text, style in pieces if text]


def safe_end(source: str) -> int:
    """The characters of `source`, the beginning of a line, that can be shown whatever follows.

    They end at a space or beside a wide character, and outside of emphasis, code and links that may still be closed.
    """
    limit = _open_mark(source) if len(source) <= WAITS else len(source)  # a mark that waited so long is none
    return next((end for end in range(limit, 0, -1) if may_break(source, end)), limit if len(source) > WAITS else 0)


def _open_mark(source: str) -> int:
    """The place of the first mark whose partner may still come; the length of `source` where there is none."""
    at = 0
    waiting: list[tuple[str, int]] = []
    while found := _MARKS.search(source, at):
        ticks, emphasis, bracket = found.groups()
        at = found.end()
        if ticks:
            end = re.compile(rf"(?<!`){ticks}(?!`)").search(source, at)
            if end is None or end.end() == len(source):
                return min([found.start(), *(place for _, place in waiting)])
            at = end.end()
        elif bracket:
            link = _LINK_END.search(source, at)
            if link is None:
                return min([found.start(), *(place for _, place in waiting)])
        elif emphasis:
            before, after = source[: found.start()][-1:], source[at : at + 1]
            if not after:  # the mark itself may go on
                return min([found.start(), *(place for _, place in waiting)])
            marks = [mark for mark, _ in waiting]
            if before and not before.isspace() and emphasis in marks:
                del waiting[marks.index(emphasis) :]
            elif not after.isspace() and not (emphasis[0] == "_" and before.isalnum()):
                waiting.append((emphasis, found.start()))
    return min([len(source), *(place for _, place in waiting)])
