"""A run of items through workers: leases them, takes reports, starts workers anew that died. Knows no transport.

Only this process writes records, and only for a line that is leased to the worker which reports it: whatever becomes
of workers, no line is lost or written twice.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from kvlite.batch.batch_run import IDLE_S
from kvlite.batch.item import Item, Outcome
from kvlite.batch.read_ahead import Source
from kvlite.batch.runner import Generated
from kvlite.batch.waiting import AHEAD
from kvlite.batch.workers.leases import Leases
from kvlite.batch.workers.memory import Memory
from kvlite.batch.workers.messages import Link, Loaded, Order, Report, Transport, WorkerDied
from kvlite.errors import KvliteError, ModelError
from kvlite.options import BatchOptions

FIRST_LEASES = 16  # lines for a worker whose rows are not known yet
LEASES_PER_ROW = 4
MOST_DEATHS = 5  # of one worker before it finishes a line
WAIT_S = 0.25  # for a report
END_S = 5.0  # for the last reports


class Listener(Protocol):
    """The listener that is told of workers: a Console, or Told."""

    def note(self, text: str) -> None:
        """Say something useful."""

    def detail(self, text: str) -> None:
        """Say something that few want to know."""

    def warn(self, text: str) -> None:
        """Say that something is not as it should be."""


@dataclass(slots=True)
class _Member:
    """A worker as the batch sees it: `deaths` in a row, without a line that it finished; no link once it is given up.

    `opens`: it was given lines since it was loaded, so that it makes its rows.
    """

    number: int
    label: str
    link: Link | None
    awaits: bool = False
    loaded: Loaded | None = None
    opens: bool = False
    is_proven: bool = False
    is_idle: bool = True
    deaths: int = 0
    num_rows: int = 0


class Workers:
    """The workers of a batch: a kvlite.batch.runner.Runner. `identity` is the model that each of them has to have."""

    def __init__(
        self, transport: Transport, options: BatchOptions, identity: str, console: Listener, memory: Memory
    ) -> None:
        self.name = ""
        self.memory = memory
        self._transport, self._identity, self._console = transport, identity, console
        self._leases = Leases(len(transport.labels), retries=options.retries, dedupe=options.dedupe)
        self._said: set[tuple[str, str]] = set()
        self._source = Source()
        self._has_finished = False
        self._members = [_Member(number, label, None) for number, label in enumerate(transport.labels)]
        for member in self._members:
            member.link = transport.start(member.number)

    @property
    def peak_bytes(self) -> int:
        """The most bytes that the rows of all workers held, each at its own time."""
        return self.memory.peak_bytes

    @property
    def budget_bytes(self) -> int:
        """The KV budgets of all workers; 0 before there are rows."""
        return self.memory.budget_bytes

    @property
    def num_rows(self) -> int:
        """The rows of all workers."""
        return self.memory.num_rows

    @property
    def rows_used(self) -> int:
        """Rows that answered when they were last heard of."""
        return self.memory.rows_used

    def live_bytes(self) -> int:
        """Count the bytes that all rows held when they were last heard of."""
        return self.memory.live_bytes

    def cancel_late(self) -> None:
        """Do nothing: each worker ends what takes too long."""

    def close(self) -> None:
        """End all workers."""
        self._transport.close()

    def await_model(self) -> None:
        """Wait until one worker has loaded the model. Raises what it could not begin with."""
        while not self.name:
            self._give_orders()
            for _ in self._take_reports(WAIT_S):
                pass

    def run(self, items: Iterable[Item | None]) -> Generator[Generated | Outcome]:
        """Yield the outcome of every item as it ends; None in `items` is no item yet. The model must have been awaited.

        Raises what a worker could not begin with, and KvliteError where no worker is left.
        """
        self._source = Source(items)
        while not (self._source.is_over and self._leases.is_empty):
            yield from self._look_ahead()
            self._give_orders()
            yield from self._take_reports(WAIT_S)
        ends_s = time.monotonic() + END_S
        while any(one.awaits and not one.is_idle for one in self._members) and time.monotonic() < ends_s:
            yield from self._take_reports(WAIT_S)
            self._give_orders()

    def _look_ahead(self) -> Iterator[Outcome]:
        """Let items wait for workers until enough do; those that cannot be answered yield at once."""
        for item in self._source.until(lambda: self._leases.is_full):
            if item.failure is not None:
                yield Outcome(item, failure=item.failure)
            else:
                self._leases.add(item)

    def _give_orders(self) -> None:
        """Send each worker that has reported its next order, with lines where it may have some."""
        for member in self._members:
            if member.link is None or member.awaits:
                continue
            order = Order()
            if member.loaded is not None and self._may_open(member):
                items = self._leases.take(member.number, self._share(member), is_proven=member.is_proven)
                to_come = self._leases.to_come(member.number, self._num_alive) if self._source.is_over else AHEAD
                order = Order(items, to_come, 1 if member.opens else self._num_sharers(member))
                if items:
                    member.opens, member.is_idle = True, False
            member.link.send(order)
            member.awaits = True

    def _share(self, member: _Member) -> int:
        """Count the lines that a worker may be given now: few towards the end, so that none waits for another."""
        waiting, held = self._leases.num_waiting, self._leases.held(member.number)
        rows = member.num_rows or FIRST_LEASES
        most = LEASES_PER_ROW * rows if member.num_rows else FIRST_LEASES
        given = (self._leases.held(one.number) + self._leases.reserved(one.number) for one in self._members)
        of_all = waiting + sum(given)
        least = min(rows, -(-of_all // self._num_alive)) - held
        return max(0, least, min(most - held, waiting // (2 * self._num_alive)))

    def _may_open(self, member: _Member) -> bool:
        """False while one that shares the device loads: all of them measure the free memory before one takes a part."""
        if member.opens or self._transport.sharers is not None:
            return True
        alive = [one for one in self._members if one.link is not None and one.label == member.label]
        return all(one.loaded is not None for one in alive)

    def _num_sharers(self, member: _Member) -> int:
        """Count those that have yet to take their part of the device's memory."""
        if self._transport.sharers is not None:
            return self._transport.sharers
        assert member.loaded is not None
        place = member.loaded.place
        return sum(
            one.loaded is not None and one.loaded.place == place and not one.opens
            for one in self._members
            if one.link is not None
        )

    @property
    def _num_alive(self) -> int:
        return sum(one.link is not None for one in self._members)

    def _take_reports(self, timeout_s: float) -> Iterator[Generated | Outcome]:
        by_link = {id(one.link): one for one in self._members if one.link is not None and one.awaits}
        links = [one.link for one in by_link.values() if one.link is not None]
        if not links:
            time.sleep(IDLE_S)
        generated = 0
        for link in self._transport.wait(links, timeout_s) if links else ():
            member = by_link[id(link)]
            member.awaits = False
            try:
                report = link.receive()
            except WorkerDied as died:
                yield from self._lose(member, str(died))
                continue
            generated += report.generated
            yield from self._heed(member, report)
        yield Generated(generated)

    def _heed(self, member: _Member, report: Report) -> Iterator[Outcome]:
        self._pass_on(member, report)
        self.memory.note(member.number, report)
        member.is_idle |= report.is_idle
        if report.cache is not None:
            member.num_rows = report.cache.rows
        for outcome in report.outcomes:
            if self._leases.settle(member.number, outcome.item.index):
                member.is_proven, member.deaths, self._has_finished = True, 0, True
                yield outcome
        if report.loaded is not None:
            self._welcome(member, report.loaded)
        if report.error is not None and not self._has_finished:
            raise type(report.error)(self._named(member, str(report.error)))
        if report.error is not None or report.crash is not None:
            assert member.link is not None
            member.link.close()
            yield from self._lose(member, report.crash or f"gave up ({report.error})")

    def _welcome(self, member: _Member, loaded: Loaded) -> None:
        if loaded.identity != self._identity:
            wrong = (
                f"has {loaded.identity}, the batch is for {self._identity}; see that all machines have the same files"
            )
            raise ModelError(self._named(member, wrong))
        member.loaded, self.name = loaded, loaded.name

    def _lose(self, member: _Member, why: str) -> Iterator[Outcome]:
        """Take back what a worker had that died, and start it anew unless it died too often. Raises KvliteError."""
        num_lines = self._leases.held(member.number)
        self.memory.lost(member.number)
        yield from self._leases.take_back(member.number, why)
        member.deaths += 1
        again = member.deaths < MOST_DEATHS
        self._console.warn(
            f"worker {member.number + 1} ({member.label}) {why}; {num_lines} lines return, and "
            f"{'it starts anew' if again else f'after {MOST_DEATHS} deaths in a row it does not start again'}"
        )
        member.loaded, member.opens, member.is_proven, member.is_idle, member.num_rows = None, False, False, True, 0
        member.link = self._transport.start(member.number) if again else None
        if not self._num_alive:
            raise KvliteError(f"no worker is left: the last one ({member.label}) {why}; run the batch again to go on")

    def _pass_on(self, member: _Member, report: Report) -> None:
        """Say what a worker said, once where several say the same."""
        say = {"note": self._console.note, "detail": self._console.detail, "warn": self._console.warn}
        for kind, text in report.said:
            if (member.label, text) not in self._said:
                self._said.add((member.label, text))
                say[kind](self._named(member, text))

    def _named(self, member: _Member, text: str) -> str:
        is_only = len(self._members) == 1
        return text if is_only else f"{member.label}: {text}"
