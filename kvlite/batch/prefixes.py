"""The beginnings that prompts of a batch share, and how far each prompt goes with others. Knows no text."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from kvlite.batch.waiting import AHEAD, Waiting
from kvlite.engine.request import Request
from kvlite.text.encoder import common_start

LEAST = 32  # tokens; a shorter beginning is fed as fast as it is copied
MOST_LEVELS = 3  # such as the system prompt, the document, the prompt of several samples

NUM_REMEMBERED = 64  # requests that got their rows, and beginnings that were shared, to compare those that wait with
LOOK_AGAIN = AHEAD // 4  # requests that were not compared and get their rows, until those that wait are compared again

Ids = tuple[int, ...]


class SharedPrefixes:
    """The beginnings that requests of a batch share, as far as those that wait were compared; none where not wanted."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._lengths: dict[str, tuple[int, ...]] = {}  # of the requests that were compared
        self._given: deque[Request] = deque(maxlen=NUM_REMEMBERED)
        self._known: OrderedDict[Ids, None] = OrderedDict()  # beginnings that were shared, the newest last
        self._num_alone = 0  # requests that were given since, and not compared

    @property
    def longest(self) -> int:
        """Tokens of the longest beginning."""
        return max((lengths[-1] for lengths in self._lengths.values() if lengths), default=0)

    def compare(self, waiting: Waiting) -> None:
        """Compare the prompts that wait, those that got their rows last, and beginnings that were shared before.

        Those that wait are put in groups that begin alike, so that few copies serve them.
        """
        self._num_alone = 0
        if self._is_wanted:
            given = {request.id: request.ids for request in self._given}
            known = {f"beginning {number}": ids for number, ids in enumerate(self._known)}
            self._lengths = shared_prefixes(known | given | waiting.prompts())
            waiting.group(self._lengths)

    def give(self, request: Request, waiting: Waiting) -> Request:
        """The request with the beginnings that it shares, as it gets its row while others are waiting."""
        self._given.append(request)
        if request.id not in self._lengths:
            self._num_alone += 1
            if self._num_alone >= min(LOOK_AGAIN, max(1, len(waiting))):
                self.compare(waiting)
        lengths = self._lengths.get(request.id, ())
        for ids in (request.ids[:length] for length in lengths):
            self._known[ids] = None
            self._known.move_to_end(ids)
        while len(self._known) > NUM_REMEMBERED:
            self._known.popitem(last=False)
        return replace(request, prefixes=lengths)


def shared_prefixes(prompts: Mapping[str, Ids]) -> dict[str, tuple[int, ...]]:
    """The lengths of each prompt's beginnings that others have too, ascending, by its name; those that save the most.

    Each is LEAST longer than the one before. A prompt of which there are several is shared but for its last id.
    """
    order = sorted(prompts, key=prompts.__getitem__)
    common = [common_start(prompts[one], prompts[other]) for one, other in pairwise(order)]
    found: dict[str, dict[int, int]] = {name: {} for name in order}
    for start, stop, length in _groups(common):
        for name in order[start : stop + 1]:
            found[name][length] = (stop - start) * length
    return {name: _best(saved, len(prompts[name])) for name, saved in found.items()}


def _groups(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbours in order that share a beginning: first, last and its length, for each length of LEAST or more."""
    groups: list[tuple[int, int, int]] = []
    open_: list[tuple[int, int]] = []  # start and length, ascending
    for place, length in enumerate([*common, 0]):
        start = place
        while open_ and open_[-1][1] > length:
            start, longer = open_.pop()
            groups.append((start, place, longer))
        if length >= LEAST and (not open_ or open_[-1][1] < length):
            open_.append((start, length))
    return groups


def _best(saved: Mapping[int, int], num_ids: int) -> tuple[int, ...]:
    """Up to MOST_LEVELS lengths, the most saving ones first taken, none near another."""
    chosen: list[int] = []
    for length in sorted(saved, key=saved.__getitem__, reverse=True):
        length = min(length, num_ids - 1)
        if length >= LEAST and all(abs(length - other) >= LEAST for other in chosen) and len(chosen) < MOST_LEVELS:
            chosen.append(length)
    return tuple(sorted(chosen))
