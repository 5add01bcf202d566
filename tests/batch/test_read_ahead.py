"""Entries are read by a thread: what is not there yet is None, and the end is the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kvlite.batch.item import Item
from kvlite.batch.read_ahead import read_ahead
from kvlite.errors import UsageError


def drained(ahead: Iterator[Item | None]) -> list[Item]:
    found = []
    for entry in ahead:
        if entry is None:
            time.sleep(0.001)
        else:
            found.append(entry)
    return found


def test_all_entries_come_in_their_order(new_item: Any) -> None:
    items = [new_item("a", index) for index in range(200)]
    ahead = read_ahead(iter(items))
    assert drained(ahead) == items
    with pytest.raises(StopIteration):
        next(ahead)


def test_what_is_not_there_yet_is_none(new_item: Any) -> None:
    there = threading.Event()

    def source() -> Iterator[Item]:
        there.wait(60)
        yield new_item("a")

    ahead = read_ahead(source())
    assert next(ahead) is None
    there.set()
    assert drained(ahead) == [new_item("a")]


def test_what_the_source_raises_is_raised_after_the_entries_before_it(new_item: Any) -> None:
    def source() -> Iterator[Item]:
        yield new_item("a")
        raise UsageError("cannot read")

    ahead = read_ahead(source())
    with pytest.raises(UsageError, match="cannot read"):
        drained(ahead)
