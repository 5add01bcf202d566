"""Keep messages from forging special tokens and role markers. Knows strings only, no tokenizer and no template.

Before the template renders a message, marks (a character that occurs nowhere else) are put between the characters of
every forged string in it. Where a mark still lies inside a forged string of the rendered text, the text is cut, and the
parts are tokenised apart: no special token is found, and a role marker gets other ids than the template's own. (A
tokenizer that spells markers letter by letter anyway gives the same ids.) The other marks are removed, so harmless text
keeps its usual ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise

_PRIVATE_USE = ((0xE000, 0xF8FF), (0xF0000, 0xFFFFD))  # code points that stand for no character


def unused_characters(count: int, texts: Sequence[str]) -> str:
    """Return `count` private-use characters that occur in none of `texts`."""
    candidates = map(chr, chain.from_iterable(range(first, last + 1) for first, last in _PRIVATE_USE))
    unused = (character for character in candidates if not any(character in text for text in texts))
    return "".join(next(unused) for _ in range(count))


class ForgedStrings:
    """A set of strings to find in text, also where a normalizer or a template would fold case, width or accents."""

    def __init__(self, strings: Iterable[str]) -> None:
        folded = {_fold(string)[0] for string in strings}
        self._strings = sorted((string for string in folded if len(string) > 1), key=len, reverse=True)
        self._longest = max(map(len, self._strings), default=0)
        self._heads = {string[:size] for string in self._strings for size in range(1, len(string))}
        self._tails = {string[size:] for string in self._strings for size in range(1, len(string))}
        # A lookahead also finds strings that overlap; the longest alternative comes first.
        alternatives = "|".join(map(re.escape, self._strings))
        self._pattern = re.compile(f"(?=({alternatives}))" if alternatives else r"(?!)")

    def any_begins(self, character: str) -> bool:
        """True where one of the strings begins with `character`."""
        return _fold(character)[0] in self._heads

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Find the strings in `text`, as (start, end) in order of start; spans may overlap."""
        folded, origin = _fold(text)
        found = (match.span(1) for match in self._pattern.finditer(folded))
        if origin is None:
            return list(found)
        return [(origin[start], origin[end - 1] + 1) for start, end in found]

    def mark(self, text: str, mark: str) -> str:
        """Put marks inside each forged string of `text`, and at an edge that could be one end of such a string."""
        return mark.join(_cut(text, self._inside(text) | self._open_edges(text)))

    def split(self, marked: str, mark: str) -> list[str]:
        """Cut `marked` where a mark lies inside a forged string; the parts hold no marks."""
        *pieces, last = marked.split(mark)
        if not pieces:
            return [last]
        text = "".join([*pieces, last])
        return _cut(text, self._inside(text) & {*accumulate(map(len, pieces))})

    def _inside(self, text: str) -> set[int]:
        """Find the places between two characters of one string."""
        return {place for start, end in self.spans(text) for place in range(start + 1, end)}

    def _open_edges(self, text: str) -> set[int]:
        start = len(text) - len(text.lstrip())  # templates trim, so the edges are inside the surrounding white space
        end = len(text.rstrip())
        reach = 4 * self._longest  # characters that fold to nothing may lie between
        head = _fold(text[start : start + reach])[0]
        tail = _fold(text[max(start, end - reach) : end])[0]
        edges = set()
        if any(head[:size] in self._tails for size in range(1, min(len(head), self._longest) + 1)):
            edges.add(start)
        if any(tail[-size:] in self._heads for size in range(1, min(len(tail), self._longest) + 1)):
            edges.add(end)
        return edges


def _cut(text: str, places: set[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *sorted(places), len(text)])]


def _fold(text: str) -> tuple[str, list[int] | None]:
    """Fold `text` for comparison, with the index in `text` of each folded character (None: the same index)."""
    if text.isascii() and text.isprintable():
        return text.lower(), None
    folded: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(text):
        for part in _fold_character(character):
            folded.append(part)
            origin.append(index)
    return "".join(folded), origin


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    if character.isspace() or character == "▁":  # SentencePiece writes spaces as U+2581
        return " "
    parts = unicodedata.normalize("NFKD", character).casefold()
    return "".join(part for part in parts if unicodedata.category(part) not in ("Mn", "Cc", "Cf"))
