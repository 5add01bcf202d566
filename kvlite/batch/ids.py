"""The ids of an input that is read only once: each may occur once, and a million of them take some megabytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from kvlite.batch.codecs import repeated
from kvlite.batch.item import Item, digest

NAMED = 2**16  # ids whose line is remembered, so that a repeated one can name it

_FULLEST = 0.7


def with_unique_ids(items: Iterable[Item]) -> Iterator[Item]:
    """Refuse items that repeat an id: what is read only once cannot be refused before it begins."""
    first_lines: dict[bytes, int] = {}
    others = SeenIds()
    for item in items:
        key = digest(item.key)
        if len(first_lines) < NAMED:
            first = first_lines.setdefault(key, item.line)
            yield item if first == item.line else repeated(item, first)
        elif key in first_lines or not others.add(key):
            yield repeated(item, first_lines.get(key))
        else:
            yield item


class SeenIds:
    """A set of digests, of which 64 bits each are kept: a hash table of numbers with linear probing.

    Of a million different ids two are taken for one in 3 of a hundred million sets.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))  # 0 is a free place
        self._count = 0

    def add(self, digest: bytes) -> bool:
        """Add a digest; False where it was there."""
        number = int.from_bytes(digest[:8], "big") or 1
        place = self._place(number)
        if self._table[place]:
            return False
        self._table[place] = number
        self._count += 1
        if self._count > _FULLEST * len(self._table):
            self._grow()
        return True

    def _place(self, number: int) -> int:
        """The place where a number is, or where it belongs."""
        table, last = self._table, len(self._table) - 1
        place = number & last
        while table[place] not in (0, number):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        held = self._table
        self._table = array("Q", bytes(2 * held.itemsize * len(held)))
        for number in held:
            if number:
                self._table[self._place(number)] = number
