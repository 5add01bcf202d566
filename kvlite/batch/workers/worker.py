"""A worker: a model on its device that answers the lines it is given. Knows no transport; loads torch as it opens."""

from __future__ import annotations

import platform
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from threading import Condition
from typing import TYPE_CHECKING, Any

from kvlite.batch.batch_run import BatchRun
from kvlite.batch.item import Item, Outcome
from kvlite.batch.model import Model
from kvlite.batch.prepare import Preparer
from kvlite.batch.runner import next_look
from kvlite.batch.workers.messages import CacheNow, Loaded, Opened, Order, Report, Said, Setup
from kvlite.errors import KvliteError, OutOfMemory, UsageError, is_out_of_memory
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import Told
from kvlite.record.measure import versions

if TYPE_CHECKING:
    from kvlite.record.recorder import ReadableEngine
    from kvlite.record.schema import ModelIdentity

TELL_AFTER_S = 0.2  # without news
LOOK_EVERY_S = 0.1  # at what the cache holds


class _Reported(Told):
    """Notes of a model, for the next report."""

    def __init__(self, say: Callable[[Said], None]) -> None:
        super().__init__()
        self._add = say

    def note(self, text: str) -> None:
        """Add a note."""
        self._add(("note", text))

    def detail(self, text: str) -> None:
        """Add a detail."""
        self._add(("detail", text))

    def warn(self, text: str) -> None:
        """Add a warning."""
        self._add(("warn", text))


class Worker:
    """Answers lines in the thread that calls `work`; another one carries messages and calls `exchange`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._changed = Condition()
        self._items: deque[Item] = deque()
        self._order = Order(to_come=1)
        self._sharers: int | None = None  # of the order with the first lines; later ones say less
        self._news: dict[str, Any] = {}
        self._outcomes: list[Outcome] = []
        self._said: list[Said] = []
        self._generated = 0
        self._run: BatchRun | None = None
        self._engine: ReadableEngine | None = None
        self._num_rows = 0
        self._look_s = 0.0

    def exchange(self, order: Order) -> Report:
        """Take an order and report what happened since the last one, at once or after a moment."""
        with self._changed:
            self._items.extend(order.items)
            self._order = order
            if order.items and self._sharers is None:
                self._sharers = order.sharers
            if self._run is not None:
                self._run.to_come = order.to_come
            self._changed.notify_all()
        if self._run is not None:
            self._run.cancel_late()
        with self._changed:
            self._changed.wait_for(lambda: bool(self._outcomes or self._said or self._news), TELL_AFTER_S)
            report = Report(tuple(self._outcomes), self._generated, tuple(self._said), **self._news)
            self._outcomes, self._said, self._generated, self._news = [], [], 0, {}
        return report

    def opened(
        self, identity: ModelIdentity, predicted: Mapping[str, int], engine: ReadableEngine, source: str
    ) -> None:
        """Report the first rows."""
        self._engine = engine
        self._tell(opened=Opened(identity, dict(predicted)), reading=engine.read())

    def work(self) -> None:
        """Load the model and answer lines, until what cannot be gone on from is reported.

        Chat templates that never end are noticed where this is the main thread.
        """
        try:
            self._answer()
        except KvliteError as error:
            self._tell(error=error)
        except BaseException as error:  # reported, because nobody else sees the end of a thread
            if is_out_of_memory(error):
                self._tell(error=OutOfMemory(f"out of memory ({str(error).splitlines()[0]})"))
            else:
                where = traceback.extract_tb(error.__traceback__)[-1]
                last = f"{type(error).__name__}: {error}".splitlines()[0]
                self._tell(crash=f"failed ({last}, {where.filename}:{where.lineno})")

    def _answer(self) -> None:
        setup = self._setup
        if (here := versions().get("kvlite", "")) != setup.version:
            raise UsageError(f"kvlite {here} is installed here, the batch runs {setup.version}; install the same")
        model = Model(RunSpec.of(setup.options), setup.batch_size, _Reported(self._say), setup.required, "")
        loaded = model.load()
        self._tell(loaded=Loaded(loaded.name, model.identity(), _place(loaded.loaded.device)))
        self._await_items()
        rows = model.rows(loaded, self, self._sharers or 1)
        preparer = Preparer.of(model, loaded.text, loaded.loaded.window, setup.answer, setup.batch)
        run = BatchRun(rows, preparer, setup.batch)
        run.to_come, self._run = self._order.to_come, run
        while True:
            for event in run.run(self._source()):
                if isinstance(event, Outcome):
                    with self._changed:
                        self._outcomes.append(_portable(event))
                        self._changed.notify_all()
                else:
                    with self._changed:
                        self._generated += 1
                if time.monotonic() >= self._look_s:
                    self._look(run)
            self._look(run)
            with self._changed:
                if not self._items:
                    self._tell(is_idle=True, reading=self._engine.read() if self._engine else None)
            self._await_items()

    def _look(self, run: BatchRun) -> None:
        """Note what the cache holds; it travels with the next report that has other news, or after a moment."""
        now_s = time.monotonic()
        if self._engine is not None:
            counts, allocated_bytes = self._engine.counts(), self._engine.allocated_bytes()
            now = CacheNow(counts, allocated_bytes, run.num_rows, run.rows_used, run.peak_bytes)
            with self._changed:
                self._news["cache"] = now
        self._look_s = next_look(now_s, LOOK_EVERY_S)

    def _await_items(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))

    def _source(self) -> Iterator[Item | None]:
        """The lines as they come; ends where none follows soon."""
        while True:
            with self._changed:
                item = self._items.popleft() if self._items else None
                if item is None and not self._order.to_come:
                    return
            yield item

    def _say(self, said: Said) -> None:
        with self._changed:
            self._said.append(said)
            self._changed.notify_all()

    def _tell(self, **news: object) -> None:
        with self._changed:
            self._news |= news
            self._changed.notify_all()


def _portable(outcome: Outcome) -> Outcome:
    """The outcome without errors, which may hold anything; its failure says in words what was wrong."""
    if all(choice.completion.error is None for choice in outcome.choices):
        return outcome
    choices = (replace(one, completion=replace(one.completion, error=None)) for one in outcome.choices)
    return replace(outcome, choices=tuple(choices))


def _place(device: Any) -> str:
    """Name the device and its machine, so that those who share it are found."""
    if device.type != "cuda":
        return f"{platform.node()} {device.type}"
    import torch

    return f"{platform.node()} {torch.cuda.get_device_properties(device).uuid}"
