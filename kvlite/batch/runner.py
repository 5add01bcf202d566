"""The seam between a batch and what answers its items: this process, or workers on several devices."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from kvlite.batch.item import Item, Outcome
from kvlite.engine.request import Token


@dataclass(frozen=True, slots=True)
class Generated:
    """Tokens that workers have generated since the last time; `n` may be 0, where only time has passed."""

    n: int


Event = Token | Generated | Outcome


class Runner(Protocol):
    """A run of items: a kvlite.batch.batch_run.BatchRun, or a kvlite.batch.workers.team.Workers.

    `name` is the model and its revision, known with the first event; bytes are sums over all rows there are.
    """

    @property
    def peak_bytes(self) -> int:
        """The most that all rows ever held."""

    @property
    def name(self) -> str:
        """The name and revision of the model."""

    @property
    def budget_bytes(self) -> int:
        """The KV budget; 0 before there are rows."""

    def run(self, items: Iterable[Item | None]) -> Generator[Event]:
        """Yield the outcome of every item as it ends, and tokens before it; None in `items` is no item yet."""

    @property
    def num_rows(self) -> int:
        """Rows there are now."""

    @property
    def rows_used(self) -> int:
        """Rows that answer now."""

    def live_bytes(self) -> int:
        """Count the bytes that all rows hold now."""

    def cancel_late(self) -> None:
        """End what takes too long; safe to call from a signal handler."""


def next_look(started_s: float, every_s: float) -> float:
    """The time of the next look at all rows, after one that `started_s`: looks take a hundredth of the time at most."""
    return started_s + max(every_s, 100 * (time.monotonic() - started_s))


def run_in_order(runner: Runner, items: Iterable[Item | None]) -> Iterator[Event]:
    """Run as `runner` does, but yield outcomes in the order of their items; those that end early wait in memory."""
    order: deque[int] = deque()
    held: dict[int, Outcome] = {}

    def noted() -> Iterator[Item | None]:
        for item in items:
            if item is not None:
                order.append(item.index)
            yield item

    for event in runner.run(noted()):
        if not isinstance(event, Outcome):
            yield event
            continue
        held[event.item.index] = event
        while order and order[0] in held:
            yield held.pop(order.popleft())
