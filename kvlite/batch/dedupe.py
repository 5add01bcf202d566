"""Deduplicate equal greedy items: the first runs, the others wait for its outcome and get a copy.

All outcomes of such items stay in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvlite.batch.item import Item
from kvlite.batch.outcome import Outcome


@dataclass(slots=True)
class _Group:
    """Equal items: the outcome of the first, once it is known, and the items that wait for it."""

    first: Outcome | None = None
    waiting: list[Item] = field(default_factory=list)


class Deduplicator:
    """Groups of equal items, by their dedupe keys."""

    def __init__(self) -> None:
        self._groups: dict[bytes, _Group] = {}

    def join(self, dedupe_key: bytes, item: Item) -> list[Outcome] | None:
        """Add an item: None where it is the first of its key and must run, else its outcome, if that is known yet."""
        group = self._groups.get(dedupe_key)
        if group is None:
            self._groups[dedupe_key] = _Group()
            return None
        if group.first is None:
            group.waiting.append(item)
            return []
        return [_copied(group.first, item)]

    def finish(self, dedupe_key: bytes, first: Outcome) -> tuple[list[Outcome], list[Item]]:
        """Record the first outcome; return those of the waiting items or, where the first failed, the items to run."""
        group = self._groups[dedupe_key]
        waiting, group.waiting = group.waiting, []
        if first.failure is not None:
            del self._groups[dedupe_key]
            return [], waiting
        group.first = first
        return [_copied(first, item) for item in waiting], []


def _copied(first: Outcome, item: Item) -> Outcome:
    return replace(first, entry=item, deduped_from=first.entry.key, attempt=1)
