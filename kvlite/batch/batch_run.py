"""Run items through the engine and yield their outcomes. Knows the engine's events, neither files nor screens.

Look-ahead is bounded. What waits says how large rows have to be: the lines of one size run together, then the cache is
made anew for those of another. A source whose next item has not arrived yields None, and the rows in flight go on.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from kvlite.batch.item import Code, Failure, Item, Outcome
from kvlite.batch.prefixes import SharedPrefixes
from kvlite.batch.prepare import Preparer, Work
from kvlite.batch.read_ahead import Source
from kvlite.batch.row_sizes import WORTH_IT, row_sizes, size_for
from kvlite.batch.waiting import AHEAD, Waiter, Waiting
from kvlite.cache.policy import PolicyFailed
from kvlite.engine.request import Completion, FinishReason, Request, Token
from kvlite.errors import BudgetTooSmall, ContextFull, OutOfMemory, UsageError
from kvlite.llm.answer import Answer
from kvlite.options import BatchOptions

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.llm.text_model import TextModel
    from kvlite.text.stream import AnswerText

IDLE_S = 0.02  # between two looks at a source that has nothing yet
MOST_OVERTAKEN = 4 * AHEAD  # items that may come after one that waits for a row of another size, before it has its turn


@dataclass(slots=True)
class _Flight:
    """One request in the engine."""

    waiter: Waiter
    answer: AnswerText
    started_s: float
    timed_out: bool = False

    @property
    def work(self) -> Work:
        return self.waiter.work


class Rows(Protocol):
    """The rows that a BatchRun fills: a kvlite.batch.rows.BatchRows."""

    most_slots: int

    @property
    def model(self) -> TextModel:
        """The model that answers."""

    @property
    def budget_bytes(self) -> int:
        """The KV budget; 0 before there are rows."""

    @property
    def engine(self) -> Engine:
        """The engine, once there are rows."""

    def count(self, slots: int, lines: int) -> int:
        """Count the rows of so many slots that there can be for so many lines."""

    def fit(self, slots: int, lines: int, shared: int = 0) -> None:
        """Make rows of `slots` for `lines`, whose prompts share `shared` tokens; they are lost with the next call."""


class BatchRun:
    """A run of items through an engine; `peak_bytes` is the most that all rows together ever held.

    `options.timeout` counts from when an item got a row, and is checked at every token and by `cancel_late`.
    """

    def __init__(self, rows: Rows, preparer: Preparer, options: BatchOptions) -> None:
        self.peak_bytes = 0
        self.width: float = math.inf  # requests that run at once; fewer after a run that failed
        self.to_come = AHEAD  # items that may follow, until there are no more
        self._rows = rows
        self._preparer = preparer
        self._options = options
        self._waiting = Waiting()
        self._sizes = (0, 0)  # of the rows that are smaller than those of this run, and of those
        self._flights: dict[str, _Flight] = {}
        self._outcomes: dict[bytes | None, Outcome] = {}  # of dedupe keys that have one
        self._equals: dict[bytes | None, list[Item]] = {}  # of the others: the items that wait for it
        self._num_equal = 0  # of these items
        self._source = Source()
        self._prefixes = SharedPrefixes(is_wanted=options.prefix_cache)

    def run(self, items: Iterable[Item | None]) -> Generator[Token | Outcome]:
        """Yield the outcome of every item as it ends, and the tokens before it; None in `items` is no item yet.

        May be called again for more items. Raises the errors that are no single request's, and those of `items`.
        """
        self._source = Source(items)
        while True:
            yield from self._look_ahead()
            if not self._waiting:
                if self._source.is_over:
                    return
                time.sleep(IDLE_S)
                continue
            self._fit()
            try:
                for event in self._engine.run(self._requests()):
                    yield from self._settle(event)
                    yield from self._look_ahead()
                self.width *= 2  # a whole run of the engine went well
            except (OutOfMemory, PolicyFailed) as error:
                yield from self._retry_all(error)

    @property
    def name(self) -> str:
        """The name and revision of the model."""
        return self._rows.model.name

    @property
    def budget_bytes(self) -> int:
        """The KV budget; 0 before there are rows."""
        return self._rows.budget_bytes

    @property
    def num_rows(self) -> int:
        """Rows there are now."""
        return len(self._engine.rows) if self.budget_bytes else 0

    @property
    def rows_used(self) -> int:
        """Rows that answer now."""
        return len(self._flights)

    @property
    def _engine(self) -> Engine:
        return self._rows.engine

    def live_bytes(self) -> int:
        """Count the bytes that all rows hold now, of which there are some once a request was given."""
        if not self._flights:
            return 0
        return sum(self._engine.rows.counts(row).live_bytes for row in range(len(self._engine.rows)))

    def cancel_late(self) -> None:
        """End the requests whose time is over; safe to call from a signal handler and from another thread."""
        latest_s = time.monotonic() - self._options.timeout
        for request_id, flight in [*self._flights.items()]:  # in the order they started
            if flight.started_s > latest_s:
                return
            if not flight.timed_out and not flight.answer.stopped:
                flight.timed_out = True
                self._engine.cancel(request_id)

    def _look_ahead(self) -> Iterator[Outcome]:
        """Prepare items until enough wait; items that cannot run yield at once."""
        for item in self._source.until(lambda: self._waiting.is_full or self._num_equal >= AHEAD):
            yield from self._take(item)

    def _fit(self) -> None:
        """Make the rows of the next run: of the smallest size that suits what waits, or that of what waits too long."""
        most = self._rows.most_slots
        to_come = 0 if self._source.is_over else self.to_come
        lines = min(AHEAD, len(self._waiting) + to_come)
        sizes = row_sizes(self._waiting.needs(), most, lambda size: self._rows.count(size, lines))
        size = size_for(self._waiting.oldest.need, sizes) if self._is_overdue else sizes[0]
        smaller = max((one for one in sizes if one < size), default=0)
        if self._sizes[1] > size and self._rows.count(self._sizes[1], lines) >= WORTH_IT * self._rows.count(
            size, lines
        ):
            size = self._sizes[1]  # nearly as many as there would be, and longer lines may come
        self._sizes = smaller, size
        self._prefixes.compare(self._waiting)
        lines = min(AHEAD, self._waiting.count(*self._taken) + to_come)
        self._rows.fit(size, lines, min(self._prefixes.longest, size))

    @property
    def _taken(self) -> tuple[int, int]:
        """The needs that this run takes: above the first, up to the second; in the longest rows there can be, all."""
        smaller, size = self._sizes
        return smaller, sys.maxsize if size >= self._rows.most_slots else size

    @property
    def _is_overdue(self) -> bool:
        """True where so many items came after the one that waits longest that it goes before them."""
        return len(self._waiting) > 0 and self._waiting.overtaken > MOST_OVERTAKEN

    def _take(self, item: Item) -> Iterator[Outcome]:
        work = self._preparer.prepare(item)
        if isinstance(work, Failure):
            yield Outcome(item, failure=work)
            return
        if self._options.dedupe:
            work.dedupe_key = self._preparer.dedupe_key(item)
        if first := self._outcomes.get(work.dedupe_key):
            yield replace(first, item=item, deduped_from=first.item.key, attempt=1)
        elif work.dedupe_key in self._equals:
            self._equals[work.dedupe_key].append(item)
            self._num_equal += 1
        else:
            if work.dedupe_key is not None:
                self._equals[work.dedupe_key] = []
            self._waiting.add(work)

    def _requests(self) -> Iterator[Request | None]:
        """Yield requests of the run's size as rows come free; None while others run and more items may come.

        After a run of the engine that failed, only `width` requests are given before the engine ends its run.
        """
        left = math.inf if self.width >= len(self._engine.rows) else self.width
        while left > 0:
            smaller, size = self._taken
            is_over = self._is_overdue and not smaller < self._waiting.oldest.need <= size
            waiter = None if is_over else self._waiting.take(smaller, size)
            if waiter is None:
                if len(self._waiting) or self._source.is_over or not self._flights:
                    return
                yield None
                continue
            left -= 1
            request = self._prefixes.give(waiter.request, self._waiting)
            self._flights[request.id] = _Flight(waiter, self._preparer.answer(waiter.work), time.monotonic())
            yield request

    def _settle(self, event: Token | Completion) -> Iterator[Token | Outcome]:
        flight = self._flights[event.request_id]
        if isinstance(event, Token):
            if not flight.answer.stopped:
                flight.answer.push(event.id)
                if flight.answer.stopped:
                    self._engine.cancel(event.request_id, FinishReason.STOP)
            self.cancel_late()
            yield event
            return
        self.peak_bytes = max(self.peak_bytes, self.live_bytes())  # rows grow until one ends, so no peak is missed
        del self._flights[event.request_id]
        flight.answer.finish()
        work = flight.work
        work.failure = work.failure or self._failure(event, flight)
        work.choices[event.request_id] = Answer.read(event, flight.answer, flight.waiter.request)
        if len(work.choices) == len(work.requests):
            yield from self._end(work)

    def _end(self, work: Work) -> Iterator[Outcome]:
        choices = tuple(work.choices[request.id] for request in work.requests if request.id in work.choices)
        if work.failure is not None:
            choices = tuple(choice for choice in choices if choice.completion_tokens)
        outcome = Outcome(work.item, choices, len(work.requests[0].ids), work.failure, work.attempt)
        yield outcome
        equals = self._equals.pop(work.dedupe_key, [])
        self._num_equal -= len(equals)
        if work.dedupe_key is not None and work.failure is None:
            self._outcomes[work.dedupe_key] = outcome
        for item in equals:  # where this one failed, the first of them runs
            yield from self._take(item)

    def _failure(self, completion: Completion, flight: _Flight) -> Failure | None:
        match completion.error:
            case None:
                if not flight.timed_out or completion.finish_reason is not FinishReason.CANCELLED:
                    return None
                message = f"not finished after {self._options.timeout:g} s; raise --timeout or lower max_tokens"
                return Failure(Code.TIMEOUT, message)
            case ContextFull():
                is_budget = self._engine.rows.on_full != "evict" and self._engine.plan.capped_by is None
                code = Code.KV_BUDGET if is_budget else Code.CONTEXT_LENGTH
            case BudgetTooSmall():
                code = Code.KV_BUDGET
            case UsageError():
                code = Code.INVALID
            case _:
                code = Code.INTERNAL
        return Failure(code, str(completion.error))

    def _retry_all(self, error: OutOfMemory | PolicyFailed) -> Iterator[Outcome]:
        """Put the requests that were in flight back in front, to run half as many at once after `error`.

        An item that failed alone and has no retries left becomes a failure.
        """
        flights, is_alone = list(self._flights.values()), len(self._flights) == 1
        self.width = max(1, len(flights) // 2)
        self._flights.clear()
        self._waiting.put((flight.waiter for flight in flights), in_front=True)
        for work in {id(flight.work): flight.work for flight in flights}.values():
            if is_alone:
                work.retries += work.attempt > 1
                if work.retries >= self._options.retries:
                    self._waiting.drop(work)
                    code = Code.OUT_OF_MEMORY if isinstance(error, OutOfMemory) else Code.INTERNAL
                    work.failure = Failure(code, str(error))
                    yield from self._end(work)
                    return
            work.attempt += 1
