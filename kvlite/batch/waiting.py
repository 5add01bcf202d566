"""The requests that are prepared and wait for a row: bounded, in the order they came, each with the slots it needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kvlite.batch.prepare import Work
from kvlite.engine.request import Request

AHEAD = 1024
"""Requests that wait, at most but for the choices of one line."""

AHEAD_TOKENS = 2**18
"""Tokens of prompts that wait, at most but for those of one line; some 36 bytes each."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request of a work, and the slots that prompt and answer `need` together; works come by `number`."""

    work: Work
    request: Request
    need: int
    number: int = 0


class Waiting:
    """The queue; `oldest` is the one that waits longest, and one that shares a beginning with it goes before others."""

    def __init__(self) -> None:
        self._queue: deque[Waiter] = deque()
        self._num_tokens = self._num_added = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        return len(self._queue) >= AHEAD or self._num_tokens >= AHEAD_TOKENS

    @property
    def oldest(self) -> Waiter:
        return min(self._queue, key=lambda waiter: waiter.number)

    @property
    def overtaken(self) -> int:
        """Count the works that came after that of the oldest."""
        return self._num_added - self.oldest.number

    def needs(self) -> list[int]:
        """The slots that each needs, in order."""
        return [waiter.need for waiter in self._queue]

    def prompts(self) -> dict[str, tuple[int, ...]]:
        """The ids of each prompt, by the request's name."""
        return {waiter.request.id: waiter.request.ids for waiter in self._queue}

    def add(self, work: Work) -> None:
        """Put the requests of a work, whose answers must be limited, at the end."""
        self._num_added += 1
        needs = ((one, len(one.ids) + (one.max_tokens or 0)) for one in work.requests)
        self.put(Waiter(work, one, need, self._num_added) for one, need in needs)

    def put(self, waiters: Iterable[Waiter], *, in_front: bool = False) -> None:
        """Put requests at the end, or in front of the others."""
        found = list(waiters)
        self._num_tokens += sum(len(waiter.request.ids) for waiter in found)
        if in_front:
            self._queue.extendleft(reversed(found))
        else:
            self._queue.extend(found)

    def take(self, above: int, size: int) -> Waiter | None:
        """Take the first that needs more than `above` and at most `size` slots; None where there is none."""
        for place, waiter in enumerate(self._queue):
            if above < waiter.need <= size:
                del self._queue[place]
                self._num_tokens -= len(waiter.request.ids)
                return waiter
        return None

    def group(self, beginnings: Mapping[str, tuple[int, ...]]) -> None:
        """Put those whose prompts begin alike one behind the other, where the oldest of them is.

        `beginnings` has the lengths that prompts share, ascending, by the request's name.
        """
        oldest: dict[tuple[int, ...], int] = {}
        shared: dict[str, list[tuple[int, ...]]] = {}
        for waiter in self._queue:
            ids, lengths = waiter.request.ids, beginnings.get(waiter.request.id, ())
            shared[waiter.request.id] = [ids[:length] for length in lengths]
            for beginning in shared[waiter.request.id]:
                oldest[beginning] = min(waiter.number, oldest.get(beginning, waiter.number))

        def place(waiter: Waiter) -> tuple[int, ...]:
            return (*(oldest[beginning] for beginning in shared[waiter.request.id]), waiter.number)

        self._queue = deque(sorted(self._queue, key=place))

    def count(self, above: int, size: int) -> int:
        """Count those that `take` would take."""
        return sum(above < waiter.need <= size for waiter in self._queue)

    def drop(self, work: Work) -> None:
        """Forget the requests of a work."""
        kept = [waiter for waiter in self._queue if waiter.work is not work]
        self._queue, self._num_tokens = deque(), 0
        self.put(kept)
