"""Choice of the rows that the next forward pass feeds, and of their ids: ints and deques, no tensors.

Prompts go first, in chunks, so that rows decode together; where at least as many rows decode as wait for the rest of
their prompts, they take turns, so that a long prompt makes no answer stall. Chunks are cut from the start of each
prompt whatever its neighbours do, so that answers do not depend on the batch.
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

    `decodes` says that they are what was drawn last, one for each row whose prompt is through. `is_again` says that
    they are the newest of the row, which holds them already.
    """

    rows: slice
    ids: tuple[tuple[int, ...], ...]
    decodes: bool = False
    is_again: bool = False

    @property
    def width(self) -> int:
        """T, the ids of the row that has most."""
        return max(self.counts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Count the ids of each row."""
        return tuple(len(ids) for ids in self.ids)


def next_feed(rows: Sequence[Row], last: Feed | None = None, most: int = MOST_CHUNK) -> Feed | None:
    """The next prefill, of at most its job's chunk a row, or decode step, after `last`; None when no row has work.

    Rows share a prefill of at most `most` tokens.
    """
    prompts = [row.index for row in rows if row.next_chunk]
    decoding = [row.index for row in rows if row.job is not None and not row.job.prompt]
    is_turn = last is not None and not last.decodes and len(decoding) >= len(prompts)
    if prompts and not (decoding and is_turn):
        return _prefill(rows, prompts[0], most)
    if not decoding:
        return None
    here = slice(decoding[0], decoding[-1] + 1)
    ids = tuple(() if row.unfed is None or row.job is None else (row.unfed,) for row in rows[here])
    return Feed(here, ids, decodes=True)


def _prefill(rows: Sequence[Row], start: int, most: int) -> Feed:
    """The prefill of the rows from `start` on.

    Neighbouring rows share one up to `most` tokens, padding included, so that activations stay those of one chunk
    however many rows there are.
    """
    stop, width = start, 0
    while stop < len(rows) and (count := rows[stop].next_chunk):
        width = max(width, count)
        if stop > start and (stop + 1 - start) * width > most:
            break
        stop += 1
    return Feed(slice(start, stop), tuple(_taken(row) for row in rows[start:stop]))


def _taken(row: Row) -> tuple[int, ...]:
    """The next ids of a row's prompt, which loses them."""
    assert row.job is not None
    return tuple(row.job.prompt.popleft() for _ in range(row.next_chunk))


def unheard(row: Row, chunk: int, *, ends: bool) -> Feed | None:
    """The newest tokens of a row that came one by one, once more for a policy that echoes; None where none are due.

    They are due when they are a `chunk`, or fewer where the answer `ends`, since a prompt follows.
    """
    count = row.seen - row.echoed
    if count == 0 or (count < chunk and not ends):
        return None
    return Feed(
        slice(row.index, row.index + 1), (tuple(row.said[row.seen - min(count, chunk) : row.seen]),), is_again=True
    )
