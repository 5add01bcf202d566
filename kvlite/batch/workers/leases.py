"""The lines that wait for a worker and those that are leased to one. Knows neither processes nor devices.

What waits is sorted, so that a worker gets neighbours: lines that begin alike go to one worker, which feeds their
beginning once. Each worker goes on where it stopped; one that comes to the end of its part takes half of the largest.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from kvlite.batch.item import Code, Failure, Item, Outcome
from kvlite.batch.prepare import asked_of

MOST_WAITING = 1024
"""Lines that wait for a worker, at most."""

MOST_CHARACTERS = 2**22
"""Characters of prompts that wait, at most but for one line."""

MOST_OVERTAKEN = 4096  # lines that may come after one that waits, before it has its turn
_PARTS = 8  # into which the lines of a worker that died are divided

_Key = tuple[str, int]


@dataclass(slots=True)
class _Lease:
    """A line that waits or is leased, by `number` as they came; `deaths` counts the workers that died with it."""

    item: Item
    key: _Key
    number: int
    asked: bytes | None = None
    deaths: int = 0


class Leases:
    """Each line is at one worker at most, and ends once.

    Lines of a worker that died are suspects: they run again in smaller groups without other lines beside them, at last
    alone. One with which more than `retries` workers died, the last time alone, becomes a failure. With `dedupe`,
    lines that ask for the same go to the same worker, which can answer the second by the first.
    """

    def __init__(self, num_workers: int, *, retries: int = 1, dedupe: bool = False) -> None:
        self._retries, self._dedupe = retries, dedupe
        self._sorted: list[_Lease] = []
        self._waits: dict[int, _Lease] = {}  # by index, in the order they came
        self._num_characters = 0
        self._num_added = 0
        self._cursors: dict[int, _Key] = {}  # where each worker goes on
        self._leased: list[dict[int, _Lease]] = [{} for _ in range(num_workers)]
        self._suspects: deque[tuple[_Lease, ...]] = deque()
        self._has_suspects = [False] * num_workers
        self._reserved: list[deque[_Lease]] = [deque() for _ in range(num_workers)]  # whose equal is or was there
        self._owners: dict[bytes, int] = {}  # of what is asked: the worker that was given it first

    @property
    def num_waiting(self) -> int:
        """Lines that any worker may be given, but suspects."""
        return len(self._sorted)

    @property
    def is_full(self) -> bool:
        waiting = len(self._sorted) + sum(map(len, self._reserved))
        return waiting >= MOST_WAITING or self._num_characters >= MOST_CHARACTERS

    @property
    def is_empty(self) -> bool:
        """True where no line waits and none is leased."""
        return not (self._sorted or self._suspects or any(self._leased) or any(self._reserved))

    def reserved(self, worker: int) -> int:
        """Count the lines that no other worker is given, because it was given their equal."""
        return len(self._reserved[worker])

    def held(self, worker: int) -> int:
        """Count the lines that a worker has."""
        return len(self._leased[worker])

    def to_come(self, worker: int, num_workers: int) -> int:
        """Count the lines that a worker may still be given, where those that wait are shared by so many."""
        return -(-len(self._sorted) // num_workers) + len(self._reserved[worker])

    def add(self, item: Item) -> None:
        """Let a line wait."""
        self._num_added += 1
        text = _text(item)
        lease = _Lease(item, (text, item.index), self._num_added, asked_of(item) if self._dedupe else None)
        self._num_characters += len(text)
        insort(self._sorted, lease, key=_key)
        self._waits[item.index] = lease

    def take(self, worker: int, most: int, *, is_proven: bool) -> tuple[Item, ...]:
        """Lease up to `most` lines to a worker; suspects to one that is proven, where others can be given to it first.

        While suspects wait for it or are at it, it is given nothing else.
        """
        given: list[_Lease] = []
        if self._has_suspects[worker]:
            return ()
        if self._suspects and (is_proven or not self._sorted):
            if self._leased[worker]:
                return ()
            given, self._has_suspects[worker] = [*self._suspects.popleft()], True
        else:
            while self._reserved[worker] and len(given) < most:
                given.append(self._reserved[worker].popleft())
            given += self._from_the_sorted(worker, most - len(given))
            self._num_characters -= sum(len(lease.key[0]) for lease in given)
        self._leased[worker].update({lease.item.index: lease for lease in given})
        return tuple(lease.item for lease in given)

    def settle(self, worker: int, index: int) -> bool:
        """Note that a line of a worker has ended; False where it was not leased to it."""
        was_leased = self._leased[worker].pop(index, None) is not None
        self._has_suspects[worker] &= bool(self._leased[worker])
        return was_leased

    def take_back(self, worker: int, why: str) -> Iterator[Outcome]:
        """Take the lines of a worker that died back; yields the failure of one that was alone once too often."""
        leased = [*self._leased[worker].values()]
        self._leased[worker].clear()
        self._has_suspects[worker] = False
        self._cursors.pop(worker, None)
        self._put_reserved_back(worker)
        for lease in leased:
            lease.deaths += 1
        if len(leased) == 1 and leased[0].deaths > self._retries:
            item, deaths = leased[0].item, leased[0].deaths
            message = f"the worker that answered it alone {why}; {deaths} workers died with it"
            yield Outcome(item, failure=Failure(Code.INTERNAL, message), attempt=deaths)
            return
        size = -(-len(leased) // _PARTS) or 1
        parts = [tuple(leased[start : start + size]) for start in range(0, len(leased), size)]
        self._suspects.extendleft(reversed(parts))

    def _put_reserved_back(self, worker: int) -> None:
        self._owners = {asked: owner for asked, owner in self._owners.items() if owner != worker}
        for lease in self._reserved[worker]:
            insort(self._sorted, lease, key=_key)
            self._waits[lease.item.index] = lease
        self._reserved[worker].clear()

    def _from_the_sorted(self, worker: int, most: int) -> list[_Lease]:
        given: list[_Lease] = []
        while self._sorted and len(given) < most:
            start, stop = self._part(worker)
            taken = self._sorted[start : min(stop, start + most - len(given))]
            del self._sorted[start : start + len(taken)]
            self._cursors[worker] = taken[-1].key
            for lease in taken:
                del self._waits[lease.item.index]
                owner = worker if lease.asked is None else self._owners.setdefault(lease.asked, worker)
                (given if owner == worker else self._reserved[owner]).append(lease)
        return given

    def _part(self, worker: int) -> tuple[int, int]:
        """The places in what waits, of which there is something, from which a worker takes its next lines."""
        oldest = next(iter(self._waits.values()))
        if self._num_added - oldest.number > MOST_OVERTAKEN:
            start = bisect_right(self._sorted, oldest.key, key=_key) - 1
            return start, start + 1
        own = self._cursors.get(worker)
        others = sorted(cursor for number, cursor in self._cursors.items() if number != worker)
        places = [bisect_right(self._sorted, cursor, key=_key) for cursor in others]
        if own is not None:
            start = bisect_right(self._sorted, own, key=_key)
            after = (place for place, cursor in zip(places, others, strict=True) if cursor > own)
            stop = next(after, len(self._sorted))
            if start < stop:
                return start, stop
        bounds = [0, *places, len(self._sorted)]
        size, start = max((stop - start, start) for start, stop in pairwise(bounds))
        return (start + size // 2 if start in places else start), start + size


def _key(lease: _Lease) -> _Key:
    return lease.key


def _text(item: Item) -> str:
    """The beginning of a line, near enough: lines whose texts begin alike have prompts that do."""
    if item.prompt is not None:
        return item.prompt
    messages: Iterable[object] = (message.get("content") for message in item.messages or ())
    return "\n".join(map(str, messages))
