"""Prompt lookup: what followed the last time that a conversation said what it has just said. Ints, no tensors.

As in https://github.com/apoorvumang/prompt-lookup-decoding, with an index that grows in place of a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SIZES = (4, 3, 2)
"""Ids that must have come before, the most first."""

MOST_MATCHED = 16
"""Ids that are compared, at most, to tell how far back an occurrence agrees."""

MOST_INDEXED = 1 << 17
"""Entries of an index, some 100 bytes each; then it begins anew."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Ids that may come next, of which `matched` before them agree with what was said last."""

    ids: tuple[int, ...]
    matched: int


@dataclass(slots=True)
class Lookup:
    """An index of the n-grams of one conversation, `said`, which grows and may lose its last id."""

    said: Sequence[int]
    _ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    _indexed: int = 0

    def draft(self, most: int) -> Draft | None:
        """At most so many ids that followed the ids said last, None where these are new.

        An occurrence that reaches into what was said last is taken to go on as it does.
        """
        self._index()
        said, end = self.said, len(self.said)
        for size in SIZES:
            at = self._ends.get(tuple(said[end - size :])) if end > size else None
            if at is not None:
                matched = 0
                while matched < min(at, MOST_MATCHED) and said[at - 1 - matched] == said[end - 1 - matched]:
                    matched += 1
                return Draft(tuple(said[at + number % (end - at)] for number in range(most)), matched)
        return None

    def _index(self) -> None:
        """Take in what came since, all but what ends with the last id: nothing follows it yet."""
        said = self.said
        if len(self._ends) > MOST_INDEXED:
            self._ends.clear()
        for end in range(min(self._indexed, len(said)), len(said)):
            for size in SIZES:
                if end >= size:
                    self._ends[tuple(said[end - size : end])] = end
        self._indexed = len(said)
