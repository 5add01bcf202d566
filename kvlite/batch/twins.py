"""Equal greedy items: the first of them runs, the others wait for its outcome and get a copy, which costs memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvlite.batch.item import Item
from kvlite.batch.outcome import Outcome


@dataclass(slots=True)
class _Group:
    """The outcome of the first, once it is there, and those that wait for it."""

    first: Outcome | None = None
    waiting: list[Item] = field(default_factory=list)


class Twins:
    """What is known of equal items, by what they have in common."""

    def __init__(self) -> None:
        self._groups: dict[bytes, _Group] = {}

    def join(self, twin: bytes, item: Item) -> list[Outcome] | None:
        """None when `item` is the first and must run; else its outcome, where it is known by now."""
        group = self._groups.get(twin)
        if group is None:
            self._groups[twin] = _Group()
            return None
        if group.first is None:
            group.waiting.append(item)
            return []
        return [_copied(group.first, item)]

    def settle(self, twin: bytes, first: Outcome) -> tuple[list[Outcome], list[Item]]:
        """The outcomes of those that waited for the first, and, when it failed, who must try for themselves."""
        group = self._groups[twin]
        waiting, group.waiting = group.waiting, []
        if first.failure is not None:
            del self._groups[twin]
            return [], waiting
        group.first = first
        return [_copied(first, item) for item in waiting], []


def _copied(first: Outcome, item: Item) -> Outcome:
    return replace(first, entry=item, deduped_from=first.entry.key, attempt=1)
