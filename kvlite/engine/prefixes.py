"""Beginnings that prompts share: fed once, kept as copies on the host inside the KV budget, put into rows.

A copy is taken when a row has been fed exactly so many ids, and nothing of it was evicted. Rows whose prompts begin
with ids that another row is being fed wait for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from kvlite.cache.cache import CacheSnapshot, SlotCache
from kvlite.engine.row import Row
from kvlite.models.hybrid import HybridState, StateSnapshot

Key = tuple[bool, tuple[int, ...]]  # of rows that evict or that do not, whose policies hear other chunks; the ids


@dataclass(frozen=True, slots=True)
class PrefixCopy:
    """The state of a row after the ids of a prefix."""

    cache: CacheSnapshot
    state: StateSnapshot | None
    echoed: int

    @property
    def num_bytes(self) -> int:
        return self.cache.num_bytes + (self.state.num_bytes if self.state is not None else 0)


class Prefixes:
    """Copies of prefixes of the rows of `cache` and their constant `state`, as many as the budget has bytes left for.

    The one used longest ago is given up first.
    """

    def __init__(self, state: HybridState | None, cache: SlotCache) -> None:
        self._state, self._cache, plan = state, cache, cache.plan
        self._most_bytes = plan.budget_bytes - plan.reserved_bytes
        self._slot_bytes = -(-plan.reserved_bytes // (plan.rows * (plan.slots + 1)))  # about what a token takes
        self._most_tokens = min(plan.fewest, cache.room(0))  # the longest of which nothing is evicted
        self._copies: OrderedDict[Key, PrefixCopy] = OrderedDict()
        self.num_bytes = 0

    def marks(self, lengths: Sequence[int], num_ids: int) -> list[int]:
        """Those of `lengths` that can be kept of a prompt of `num_ids`, of which one id is fed in any case."""
        most = min(self._most_tokens, num_ids - 1, self._most_bytes // self._slot_bytes)
        return sorted({length for length in lengths if 0 < length <= most})

    def share(self, rows: Sequence[Row]) -> None:
        """Copy the rows that have come to the end of a prefix, and let those go on that wait for one."""
        for row in rows:
            if row.job is not None and row.job.marks and row.seen == row.job.marks[0]:
                self._keep(row)
        for row in rows:
            if row.job is not None and row.job.waits:
                self.start(row, rows)

    def start(self, row: Row, rows: Sequence[Row]) -> None:
        """Let a row that has fed nothing begin with the longest copy there is, or wait for one in the making."""
        job = row.job
        assert job is not None
        ids = job.request.ids
        for mark in reversed(job.marks):
            if mark > row.seen and (copy := self._copies.get((job.evicts, ids[:mark]))) is not None:
                self._copies.move_to_end((job.evicts, ids[:mark]))
                self._put(row, copy)
                row.skip(mark, copy.echoed)
                break
        job.waits = bool(job.marks) and any(
            other is not row and _is_making(other, (job.evicts, ids[: job.marks[0]])) for other in rows
        )

    def _keep(self, row: Row) -> None:
        """Keep a copy of a row that has come to a mark."""
        assert row.job is not None
        key = row.job.evicts, row.job.request.ids[: row.job.marks.pop(0)]
        if key in self._copies:
            return
        state = self._state.snapshot() if self._state is not None else None
        copied = PrefixCopy(self._cache.snapshot(row.index), state, row.echoed)
        if copied.num_bytes > self._most_bytes:
            return
        while self.num_bytes + copied.num_bytes > self._most_bytes:
            self.num_bytes -= self._copies.popitem(last=False)[1].num_bytes
        self._copies[key] = copied
        self.num_bytes += copied.num_bytes

    def _put(self, row: Row, copied: PrefixCopy) -> None:
        self._cache.restore(row.index, copied.cache)
        if self._state is not None:
            assert copied.state is not None
            self._state.restore(copied.state)


def _is_making(row: Row, key: Key) -> bool:
    """True where a row is being fed the ids of `key`, to be copied then."""
    job = row.job
    if job is None or job.waits or job.ending is not None or len(key[1]) not in job.marks:
        return False
    return key == (job.evicts, job.request.ids[: len(key[1])])
