"""Code on a terminal, line by line, coloured by Pygments in colours that are read on dark and light alike."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kvlite.chat.words import sgr

if TYPE_CHECKING:
    from pygments.lexer import Lexer

_CONTEXT = 200  # lines before it that a line is read with: where strings and comments begin
_COLORS = {
    "Comment": "2",
    "Keyword": "35",
    "Literal.String": "32",
    "Literal.Number": "36",
    "Name.Function": "34",
    "Name.Class": "34",
    "Name.Tag": "34",
    "Name.Builtin": "36",
    "Name.Decorator": "33",
    "Operator.Word": "35",
    "Generic.Deleted": "31",
    "Generic.Inserted": "32",
}


class CodeLines:
    """The lines of one block of code, in the `language` that Pygments knows by this name; plain where it knows none."""

    def __init__(self, language: str, *, has_color: bool) -> None:
        self._lexer = _lexer(language) if has_color and language else None
        self._before: list[str] = []

    def line(self, text: str) -> str:
        """Colour the next line."""
        if self._lexer is None:
            return text
        code = "\n".join([*self._before, text])
        row, self._before = len(self._before), [*self._before, text][-_CONTEXT:]
        rows = [""]
        for kind, value in self._lexer.get_tokens(code):
            first, *others = (sgr(part, _color(str(kind))) for part in value.split("\n"))
            rows[-1] += first
            rows += others
        return rows[row]


def _lexer(language: str) -> Lexer | None:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        found: Lexer = get_lexer_by_name(language, stripnl=False, stripall=False)
    except ClassNotFound:
        return None
    return found


@lru_cache(maxsize=256)
def _color(kind: str) -> str:
    """The SGR codes of a kind of token, as in `Token.Literal.String.Doc`."""
    name = kind.removeprefix("Token.")
    return next((color for start, color in _COLORS.items() if name == start or name.startswith(f"{start}.")), "")
