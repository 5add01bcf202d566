"""Read a source that may block in a thread, so that a slow pipe does not delay the answers being made."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread

from kvlite.batch.item import Entry

NUM_AHEAD = 64  # entries that wait, at most


class ReadAhead(Iterator[Entry | None]):
    """Iterator over the entries of `source`; None where the next one has not arrived. Raises the errors of `source`.

    The thread never keeps the process alive, also while it waits for a line.
    """

    def __init__(self, source: Iterator[Entry]) -> None:
        self._source = source
        self._read: Queue[Entry | BaseException] = Queue(NUM_AHEAD)
        Thread(target=self._run, name="read-ahead", daemon=True).start()

    def __next__(self) -> Entry | None:
        try:
            entry = self._read.get_nowait()
        except Empty:
            return None
        if isinstance(entry, BaseException):
            self._read.put(entry)  # so that every later call raises it, too
            raise entry
        return entry

    def _run(self) -> None:
        try:
            for entry in self._source:
                self._read.put(entry)
            end: BaseException = StopIteration()
        except BaseException as error:  # raised again where the entries are awaited
            end = error
        self._read.put(end)
