"""Which rows the next forward pass feeds, and what: ints and deques, no tensors.

Prompts go first, in chunks, so that a waiting answer starts soon; then all rows decode one token together. Chunks are
cut from the start of each prompt whatever its neighbours do, so that answers do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvlite.engine.row import Row


@dataclass(frozen=True, slots=True)
class Feed:
    """The ids each of `rows` (neighbours in the cache) is fed; an empty list is padding only."""

    rows: slice
    ids: tuple[tuple[int, ...], ...]


def next_feed(rows: Sequence[Row], chunk: int) -> Feed | None:
    """The next prefill of at most `chunk` tokens a row, else one decode step; None when no row has work."""
    prefilling = [row.index for row in rows if row.job is not None and row.job.prompt]
    if prefilling:
        start = stop = prefilling[0]
        while stop in prefilling:
            stop += 1
        chunks = []
        for row in rows[start:stop]:
            assert row.job is not None
            prompt = row.job.prompt
            chunks.append(tuple(prompt.popleft() for _ in range(min(chunk, len(prompt)))))
        return Feed(slice(start, stop), tuple(chunks))
    decoding = [row.index for row in rows if row.job is not None]
    if not decoding:
        return None
    here = slice(decoding[0], decoding[-1] + 1)
    return Feed(here, tuple(() if row.unfed is None or row.job is None else (row.unfed,) for row in rows[here]))
