"""Choice of the rows that the next forward pass feeds, and of their ids: ints and deques, no tensors.

Prompts are fed in chunks, and rows that decode share the pass, as in SARATHI (https://arxiv.org/abs/2308.16369), or
where they cannot, take turns with them: between two tokens of an answer is at most one chunk. Departing from the paper,
chunks are cut from the start of each prompt whatever its neighbours do, so that answers do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from kvlite.engine.row import Row
from kvlite.memory.plan import MOST_CHUNK


@dataclass(frozen=True)
class Feed:
    """The ids each of `rows` (neighbours in the cache) is fed; an empty list is padding only.

    `decodes` says that they are what was drawn last, one for each row whose prompt is through. `is_again` says that
    they are the newest of the row, which holds them already. The decode step `beside` shares the pass.
    """

    rows: slice
    ids: tuple[tuple[int, ...], ...]
    decodes: bool = False
    is_again: bool = False
    beside: Feed | None = None

    @property
    def width(self) -> int:
        """T, the ids of the row that has most."""
        return max(self.counts)

    @property
    def is_chunk(self) -> bool:
        """True where it is part of a prompt, of more than one id."""
        return self.width > 1 and not self.decodes

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Count the ids of each row."""
        return tuple(len(ids) for ids in self.ids)


def next_feed(
    rows: Sequence[Row],
    last: Feed | None = None,
    most: int = MOST_CHUNK,
    may_share: Callable[[Row, int], bool] = lambda row, count: False,
) -> Feed | None:
    """The next prefill, of at most its job's chunk a row, or decode step, after `last`; None when no row has work.

    Rows share a prefill of at most `most` tokens, and a decode step shares its pass where every row of both
    `may_share` one in which it is fed so many tokens. Else the two take turns.
    """
    prompts = [row.index for row in rows if row.next_chunk]
    decoding = [row for row in rows if row.job is not None and not row.job.prompt]
    if not decoding:
        return _prefill(rows, _together(rows, prompts[0], most)) if prompts else None
    if not prompts:
        return _decode(rows, decoding)
    chosen = _together(rows, prompts[0], most)
    if all(may_share(row, row.next_chunk or 1) for row in (*decoding, *rows[chosen])):
        return replace(_prefill(rows, chosen), beside=_decode(rows, decoding))
    is_turn = last is not None and not last.decodes
    return _decode(rows, decoding) if is_turn else _prefill(rows, chosen)


def _decode(rows: Sequence[Row], decoding: Sequence[Row]) -> Feed:
    """The step that feeds what was drawn last to the rows that are `decoding`."""
    here = slice(decoding[0].index, decoding[-1].index + 1)
    ids = tuple(() if row.unfed is None or row.job is None else (row.unfed,) for row in rows[here])
    return Feed(here, ids, decodes=True)


def _together(rows: Sequence[Row], start: int, most: int) -> slice:
    """The rows from `start` on that are prefilled together.

    Neighbouring rows share a prefill up to `most` tokens, padding included, so that activations stay those of one chunk
    however many rows there are.
    """
    stop, width = start, 0
    while stop < len(rows) and (count := rows[stop].next_chunk):
        width = max(width, count)
        if stop > start and (stop + 1 - start) * width > most:
            break
        stop += 1
    return slice(start, stop)


def _prefill(rows: Sequence[Row], chosen: slice) -> Feed:
    """The prefill of neighbouring rows, whose prompts lose what is fed."""
    return Feed(chosen, tuple(_taken(row) for row in rows[chosen]))


def _taken(row: Row) -> tuple[int, ...]:
    """The next ids of a row's prompt, which loses them."""
    assert row.job is not None
    return tuple(row.job.prompt.popleft() for _ in range(row.next_chunk))


def unheard(row: Row, chunk: int, *, ends: bool) -> Feed | None:
    """The first tokens of a row that a policy which echoes has not heard, once more; None where none are due.

    They are due when they are a `chunk`, or fewer where the answer `ends`, since a prompt follows.
    """
    count = row.seen - row.echoed
    if count == 0 or (count < chunk and not ends):
        return None
    piece = tuple(row.said[row.echoed : min(row.echoed + chunk, row.seen)])
    return Feed(slice(row.index, row.index + 1), (piece,), is_again=True)
