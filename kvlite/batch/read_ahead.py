"""Items read before they are needed: in a thread, so that a slow pipe delays no answer, and until enough wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Queue
from threading import Thread

from kvlite.batch.item import Item

NUM_AHEAD = 64  # items of a pipe that wait to be answered, at most


def read_ahead(source: Iterator[Item]) -> Iterator[Item | None]:
    """Yield items read in a thread; None where the next one is not there yet.

    Raises the errors of `source`. The thread never keeps the process alive, also while it waits for a line.
    """
    ready: Queue[Item | BaseException] = Queue(NUM_AHEAD)

    def read() -> None:
        try:
            for item in source:
                ready.put(item)
            ready.put(StopIteration())
        except BaseException as error:  # raised again where the items are awaited
            ready.put(error)

    Thread(target=read, name="read-ahead", daemon=True).start()
    while True:
        try:
            item = ready.get_nowait()
        except Empty:
            yield None
            continue
        if isinstance(item, StopIteration):
            return
        if isinstance(item, BaseException):
            raise item
        yield item


class Source:
    """A source of items, in which None is no item yet; `is_over` once there are no more."""

    def __init__(self, items: Iterable[Item | None] = ()) -> None:
        self.is_over = False
        self._items = iter(items)

    def until(self, is_enough: Callable[[], bool]) -> Iterator[Item]:
        """Yield the items that are there, until it is enough. Raises the errors of the source."""
        while not (self.is_over or is_enough()):
            try:
                item = next(self._items)
            except StopIteration:
                self.is_over = True
                return
            if item is None:
                return
            yield item
