"""Choice of the rows that the next forward pass feeds, and of their ids: ints and deques, no tensors.

Prompts go first, in chunks, so that rows decode together; where at least as many rows decode as wait for the rest of
their prompts, they take turns, so that a long prompt makes no answer stall. Chunks are cut from the start of each
prompt whatever its neighbours do, so that answers do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from kvlite.engine.row import Row
from kvlite.memory.plan import MOST_CHUNK


@dataclass(frozen=True)
class Feed:
    """The ids each of `rows` (neighbours in the cache) is fed; an empty list is padding only.

    `decodes` says that they are what was drawn last, one for each row whose prompt is through. `echo` are ids fed
    behind them that only ask: the first `asks` of each row ask for it, the rest are its newest, once more.
    """

    rows: slice
    ids: tuple[tuple[int, ...], ...]
    decodes: bool = False
    echo: tuple[tuple[int, ...], ...] = ()
    asks: int = 0

    @property
    def width(self) -> int:
        """T, the ids of the row that has most."""
        return max(self.counts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Count the ids of each row."""
        return tuple(len(ids) for ids in self.ids)


MOST_ECHO = MOST_CHUNK // 2
LEAST_ECHO = 16
"""Tokens that are fed a second time at once, of all rows at most, and of a row in decode at least."""


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


def until_echo(row: Row, ask: tuple[int, ...], chunk: int) -> int | None:
    """The tokens that a lone row in decode is fed before `with_echo` repeats any of them; None where it never does."""
    chunk = min(chunk, MOST_ECHO - len(ask))
    if chunk < LEAST_ECHO or row.job is None or not row.job.echoes:
        return None
    return chunk - 1 - (row.seen - row.echoed)


def with_echo(feed: Feed, rows: Sequence[Row], ask: tuple[int, ...], chunk: int, *, one_by_one: bool) -> Feed:
    """The `feed`, and behind it `ask` and at most `chunk` ids of each row that have been fed only once.

    Where tokens come `one_by_one` that is once every so many of a row's, and not where so many rows decode that next to
    none of each would fit.
    """
    if one_by_one:
        chunk = min(chunk, MOST_ECHO // len(rows) - len(ask))
        if chunk < LEAST_ECHO:
            return feed
    echo = []
    for row, count in zip(rows, feed.counts, strict=True):
        end = row.seen + count
        is_needed = count and (row.job is None or row.job.echoes) and not (one_by_one and end - row.echoed < chunk)
        again = row.said[max(row.echoed, end - chunk) : end] if is_needed else ()
        echo.append((*ask, *again) if again else ())
        row.echoed = end if again else row.echoed
    if not any(echo):
        return feed
    return replace(feed, echo=tuple(echo), asks=len(ask))
