"""Choice of the rows that the next forward pass feeds, and of their ids: ints and deques, no tensors.

Prompts go first, in chunks, so that a waiting answer starts soon; then all rows decode one token together. Chunks are
cut from the start of each prompt whatever its neighbours do, so that answers do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kvlite.engine.row import Row
from kvlite.memory.plan import MOST_CHUNK


@dataclass(frozen=True)
class Feed:
    """The ids each of `rows` (neighbours in the cache) is fed; an empty list is padding only.

    `decodes` says that they are what was drawn last, one for each row at work.
    """

    rows: slice
    ids: tuple[tuple[int, ...], ...]
    decodes: bool = False

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Count the ids of each row."""
        return tuple(len(ids) for ids in self.ids)


def next_feed(rows: Sequence[Row], chunk: int) -> Feed | None:
    """The next prefill of at most `chunk` tokens a row, else one decode step; None when no row has work.

    Neighbouring rows share a prefill up to MOST_CHUNK tokens, padding included, so that activations stay those of one
    chunk however many rows there are.
    """
    waiting = {row.index: min(chunk, len(row.job.prompt)) for row in rows if row.job is not None and row.job.prompt}
    if waiting:
        start = stop = min(waiting)
        width = 0
        while stop in waiting:
            width = max(width, waiting[stop])
            if stop > start and (stop + 1 - start) * width > MOST_CHUNK:
                break
            stop += 1
        return Feed(slice(start, stop), tuple(_taken(row, waiting[row.index]) for row in rows[start:stop]))
    decoding = [row.index for row in rows if row.job is not None]
    if not decoding:
        return None
    here = slice(decoding[0], decoding[-1] + 1)
    ids = tuple(() if row.unfed is None or row.job is None else (row.unfed,) for row in rows[here])
    return Feed(here, ids, decodes=True)


def _taken(row: Row, count: int) -> tuple[int, ...]:
    """The next `count` ids of a row's prompt, which loses them."""
    assert row.job is not None
    return tuple(row.job.prompt.popleft() for _ in range(count))
