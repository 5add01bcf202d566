"""Items read in a thread, so that a slow pipe delays no answer."""

from __future__ import annotations

from collections.abc import Iterator
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
