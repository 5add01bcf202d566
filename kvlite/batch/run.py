"""The batch itself: entries in, outcomes out as they come. Knows the engine's events, neither files nor screens.

Look-ahead is bounded: besides the rows in flight at most one more engine-load of prepared items waits. Entries that are
not there yet hold up nothing: their source says None, and the rows in flight go on.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvlite.batch.item import BadLine, Code, Entry, Failure, Item, LineError
from kvlite.batch.outcome import Choice, Outcome
from kvlite.batch.prepare import Prepared, Preparer
from kvlite.batch.twins import Twins
from kvlite.engine.request import Completion, FinishReason, Request, Token
from kvlite.errors import BudgetTooSmall, ContextFull, OutOfMemory, UsageError

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.text.stream import AnswerText

IDLE_S = 0.02  # between two looks at a source that has nothing yet


@dataclass(frozen=True, slots=True)
class Limits:
    """`timeout_s` per item from when it got a row, looked at with every token and by `cancel_late`; `retries` of an
    item alone after the device ran out of memory; `dedupe` runs equal greedy items once and keeps their answers.
    """

    timeout_s: float | None = None
    retries: int = 1
    dedupe: bool = False


@dataclass(slots=True)
class _Work:
    """An item on its way: what is prepared, what came back so far. `attempt` counts tries, `retries` those alone."""

    prepared: Prepared
    twin: bytes | None = None
    attempt: int = 1
    retries: int = 0
    choices: dict[str, Choice] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass(slots=True)
class _Flight:
    """One request in the engine."""

    work: _Work
    request: Request
    answer: AnswerText
    started_s: float
    timed_out: bool = False


class BatchRun:
    """Runs entries through an engine. `peak_bytes` is the most that all rows together ever held."""

    def __init__(
        self,
        engine: Engine,
        preparer: Preparer,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.peak_bytes = 0
        self.width = engine.rows  # how many requests run at once; fewer after the device ran out of memory
        self._engine = engine
        self._preparer = preparer
        self._limits = limits or Limits()
        self._clock = clock
        self._waiting: deque[tuple[_Work, Request]] = deque()
        self._flights: dict[str, _Flight] = {}
        self._twins = Twins()
        self._is_read = False

    def run(self, entries: Iterable[Entry | None]) -> Generator[Token | Outcome]:
        """The outcome of every entry, in the order they end, and the tokens on the way; None is no entry yet.

        Raises what ends the whole run: errors that are no request's own, and whatever `entries` raises.
        """
        source = iter(entries)
        while True:
            yield from self._look_ahead(source)
            if not self._waiting:
                if self._is_read:
                    return
                time.sleep(IDLE_S)
                continue
            try:
                for event in self._engine.run(self._requests()):
                    yield from self._settle(event)
                    yield from self._look_ahead(source)
                self.width = min(self._engine.rows, 2 * self.width)  # a whole load went well
            except OutOfMemory as error:
                yield from self._retry_all(error)

    def run_in_order(self, entries: Iterable[Entry | None]) -> Generator[Token | Outcome]:
        """As `run`, but outcomes come in the order of their entries; those that end early wait in memory."""
        order: deque[int] = deque()
        held: dict[int, Outcome] = {}

        def noted() -> Iterator[Entry | None]:
            for entry in entries:
                if entry is not None:
                    order.append(entry.place.index)
                yield entry

        for event in self.run(noted()):
            if isinstance(event, Token):
                yield event
                continue
            held[event.entry.place.index] = event
            while order and order[0] in held:
                yield held.pop(order.popleft())

    def live_bytes(self) -> int:
        """What all rows hold now."""
        return sum(self._engine.counts(row).live_bytes for row in range(self._engine.rows))

    def cancel_late(self) -> None:
        """End the requests whose time is over; an alarm may call this in the midst of anything."""
        if self._limits.timeout_s is None:
            return
        latest_s = self._clock() - self._limits.timeout_s
        for request_id, flight in self._flights.items():  # in the order they started
            if flight.started_s > latest_s:
                return
            if not flight.timed_out and not flight.answer.stopped:
                flight.timed_out = True
                self._engine.cancel(request_id)

    def _look_ahead(self, source: Iterator[Entry | None]) -> Iterator[Outcome]:
        """Prepare what is there until an engine-load of requests waits; entries that cannot run come out at once."""
        while len(self._waiting) < self._engine.rows:
            try:
                entry = next(source)
            except StopIteration:
                self._is_read = True
                return
            if entry is None:
                return
            if isinstance(entry, BadLine):
                yield Outcome(entry, failure=entry.failure)
            else:
                yield from self._take(entry)

    def _take(self, item: Item) -> Iterator[Outcome]:
        try:
            prepared = self._preparer.prepare(item)
        except LineError as refused:
            yield Outcome(item, failure=refused.failure)
            return
        twin = self._preparer.twin_of(item) if self._limits.dedupe else None
        known = None if twin is None else self._twins.join(twin, item)
        if known is not None:
            yield from known
            return
        work = _Work(prepared, twin)
        self._waiting.extend((work, request) for request in prepared.requests)

    def _requests(self) -> Iterator[Request | None]:
        """What the engine pulls when rows are free: None as long as others run and more may come.

        A narrowed run gives the engine one load at a time.
        """
        left = math.inf if self.width == self._engine.rows else self.width
        while left > 0 and (self._waiting or (self._flights and not self._is_read)):
            if not self._waiting:
                yield None
                continue
            left -= 1
            work, request = self._waiting.popleft()
            answer = self._preparer.answer(work.prepared)
            self._flights[request.id] = _Flight(work, request, answer, self._clock())
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
        self.peak_bytes = max(self.peak_bytes, self.live_bytes())  # rows grow until one ends: no peak is missed
        del self._flights[event.request_id]
        flight.answer.finish()
        work = flight.work
        work.failure = work.failure or self._failure(event, flight)
        work.choices[event.request_id] = _choice(event, flight)
        if len(work.choices) == len(work.prepared.requests):
            yield from self._end(work)

    def _end(self, work: _Work) -> Iterator[Outcome]:
        requests = work.prepared.requests
        choices = tuple(work.choices[request.id] for request in requests if request.id in work.choices)
        if work.failure is not None:
            choices = tuple(choice for choice in choices if choice.completion_tokens)
        outcome = Outcome(work.prepared.item, choices, len(requests[0].ids), work.failure, work.attempt)
        yield outcome
        if work.twin is not None:
            copies, others = self._twins.settle(work.twin, outcome)
            yield from copies
            for item in others:
                yield from self._take(item)

    def _failure(self, completion: Completion, flight: _Flight) -> Failure | None:
        error = completion.error
        if error is None:
            if flight.timed_out and completion.finish_reason is FinishReason.CANCELLED:
                message = f"not finished after {self._limits.timeout_s} s; raise --timeout or lower max_tokens"
                return Failure(Code.TIMEOUT, message)
            return None
        if isinstance(error, ContextFull):
            is_budget = self._engine.on_full != "evict" and self._engine.plan.capped_by is None
            return Failure(Code.KV_BUDGET if is_budget else Code.CONTEXT_LENGTH, str(error))
        if isinstance(error, BudgetTooSmall):
            return Failure(Code.KV_BUDGET, str(error))
        return Failure(Code.INVALID if isinstance(error, UsageError) else Code.INTERNAL, str(error))

    def _retry_all(self, error: OutOfMemory) -> Iterator[Outcome]:
        """The device ran out of memory: run what was in flight again, half as many at once, before everything else.

        An item that failed alone, and has no retries left, is given up.
        """
        flights, is_alone = list(self._flights.values()), len(self._flights) == 1
        self.width = max(1, len(flights) // 2)
        self._flights.clear()
        self._waiting.extendleft((flight.work, flight.request) for flight in reversed(flights))
        for work in {id(flight.work): flight.work for flight in flights}.values():
            if is_alone:
                work.retries += work.attempt > 1
                if work.retries >= self._limits.retries:
                    yield from self._give_up(work, error)
                    return
            work.attempt += 1

    def _give_up(self, work: _Work, error: OutOfMemory) -> Iterator[Outcome]:
        self._waiting = deque(waits for waits in self._waiting if waits[0] is not work)
        work.failure = Failure(Code.OUT_OF_MEMORY, str(error))
        yield from self._end(work)


def _choice(completion: Completion, flight: _Flight) -> Choice:
    return Choice(
        text=flight.answer.text,
        thinking=flight.answer.thinking,
        finish_reason=FinishReason.STOP if flight.answer.stopped else completion.finish_reason,
        completion_tokens=len(completion.ids),
        seed=flight.request.sampling.seed,
        kv=completion.kv,
        timing=completion.timing,
    )
