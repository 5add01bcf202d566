"""The messages between a batch and its workers, whatever carries them: orders one way, a report for each the other.

A worker is asked again and again; a report comes when there is something to tell, or after a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kvlite.batch.item import Item, Outcome
from kvlite.errors import KvliteError
from kvlite.llm.spec import BatchSize
from kvlite.memory.counts import KVCounts
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions
from kvlite.record.recorder import Reading
from kvlite.record.schema import ModelIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The things that a worker opens: the model on the device that `options` name, and the options of the batch.

    `required` is the only model that lines may name, None where they may name any. On a CPU the model gets `threads`,
    None leaves their number to it. `version` of kvlite is the batch's.
    """

    options: ModelOptions
    answer: AnswerOptions
    batch: BatchOptions
    batch_size: BatchSize
    required: str | None
    version: str
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Lines to answer, after which some `to_come` more may follow; after 0 there may be more only later.

    As many workers as `sharers` divide the free memory of their device, where this one has not taken its part yet.
    """

    items: tuple[Item, ...] = ()
    to_come: int = 0
    sharers: int = 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is loaded: its name in records, its identity, and the device with its machine."""

    name: str
    identity: str
    place: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The facts that a run record notes of a worker's first rows."""

    identity: ModelIdentity
    predicted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CacheNow:
    """The cache of a worker: its counts, its rows, those that answer, and the most bytes that all rows ever held."""

    counts: KVCounts
    allocated_bytes: int | None
    rows: int
    rows_used: int
    peak_bytes: int


Said = tuple[Literal["note", "detail", "warn"], str]


@dataclass(frozen=True, slots=True)
class Report:
    """The events in a worker since its last report; what is None has not changed.

    `is_idle`: all lines that it was given have ended. A worker that reports an `error` or a `crash` does nothing more.
    """

    outcomes: tuple[Outcome, ...] = ()
    generated: int = 0
    said: tuple[Said, ...] = ()
    is_idle: bool = False
    loaded: Loaded | None = None
    opened: Opened | None = None
    cache: CacheNow | None = None
    reading: Reading | None = None
    error: KvliteError | None = None
    crash: str | None = None


class WorkerDied(Exception):
    """A worker is gone; the text goes on after its name: `was killed by SIGKILL`."""


class Link(Protocol):
    """The way to one worker. Each `send` is followed by one `receive`."""

    def send(self, order: Order) -> None:
        """Send an order; where the worker is gone, `receive` says so."""

    def receive(self) -> Report:
        """The report that answers the order, waited for. Raises WorkerDied."""

    def close(self) -> None:
        """Let the worker end, or end it."""


class Transport(Protocol):
    """The way to all workers."""

    @property
    def labels(self) -> Sequence[str]:
        """The device of each worker, in the order of their numbers."""

    @property
    def sharers(self) -> int | None:
        """Workers that divide the memory of one device; None where those of one label do."""

    def start(self, number: int) -> Link:
        """Start worker `number`, also again after it died."""

    def wait(self, links: Sequence[Link], timeout_s: float) -> list[Link]:
        """Those of `links` whose report is there, or whose worker is gone; waits for one, but no longer than this."""

    def close(self) -> None:
        """End all workers; none is left when this returns."""
