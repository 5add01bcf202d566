"""A source that may block, read by a thread: a slow pipe holds up no answer that is being made."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread

from kvlite.batch.item import Entry

NUM_AHEAD = 64  # entries that wait, at most


class ReadAhead(Iterator[Entry | None]):
    """The entries of `source`; None where the next one is not there yet. Raises what `source` raises.

    The thread never keeps the process alive, also when it waits for a line that does not come.
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
            self._read.put(entry)  # the end stays the end
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
