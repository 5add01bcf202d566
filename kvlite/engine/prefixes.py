"""Beginnings that prompts share: fed once, kept as copies on the host inside the KV budget, put into rows.

A copy is taken when a row has been fed exactly so many ids, and nothing of it was evicted. Rows whose prompts begin
with ids that another row is being fed wait for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvlite.cache.cache import CacheSnapshot
from kvlite.engine.row import Row
from kvlite.models.hybrid import StateSnapshot

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefixCopy:
    """The state of a row after the ids of a prefix."""

    cache: CacheSnapshot
    state: StateSnapshot | None

    @property
    def num_bytes(self) -> int:
        return self.cache.num_bytes + (self.state.num_bytes if self.state is not None else 0)


class Prefixes:
    """Copies of prefixes, at most `most_bytes` of them, the one used longest ago given up first.

    `slot_bytes` is about what a token takes, `most_tokens` the longest prefix of which nothing is evicted.
    """

    def __init__(self, most_bytes: int, slot_bytes: int, most_tokens: int) -> None:
        self._most_bytes, self._slot_bytes, self._most_tokens = most_bytes, slot_bytes, most_tokens
        self._copies: OrderedDict[Key, PrefixCopy] = OrderedDict()
        self.num_bytes = 0

    def marks(self, lengths: Sequence[int], num_ids: int) -> list[int]:
        """Those of `lengths` that can be kept of a prompt of `num_ids`, of which one id is fed in any case."""
        most = min(self._most_tokens, num_ids - 1, self._most_bytes // self._slot_bytes)
        return sorted({length for length in lengths if 0 < length <= most})

    def start(self, row: Row, rows: Sequence[Row], restore: Callable[[Row, PrefixCopy], None]) -> None:
        """Let a row that has fed nothing begin with the longest copy there is, or wait for one in the making."""
        job = row.job
        assert job is not None
        ids = job.request.ids
        for mark in reversed(job.marks):
            if mark > row.seen and (copy := self._copies.get(ids[:mark])) is not None:
                self._copies.move_to_end(ids[:mark])
                restore(row, copy)
                row.skip(mark)
                break
        job.waits = bool(job.marks) and any(
            other is not row and _is_making(other, ids[: job.marks[0]]) for other in rows
        )

    def keep(self, row: Row, copied: PrefixCopy) -> None:
        """Keep the copy of a row that has come to a mark."""
        assert row.job is not None
        key = row.job.request.ids[: row.job.marks.pop(0)]
        if copied.num_bytes > self._most_bytes or key in self._copies:
            return
        while self.num_bytes + copied.num_bytes > self._most_bytes:
            self.num_bytes -= self._copies.popitem(last=False)[1].num_bytes
        self._copies[key] = copied
        self.num_bytes += copied.num_bytes


def _is_making(row: Row, key: Key) -> bool:
    """True where a row is being fed the ids of `key`, to be copied then."""
    job = row.job
    if job is None or job.waits or job.ending is not None or len(key) not in job.marks:
        return False
    return job.request.ids[: len(key)] == key
