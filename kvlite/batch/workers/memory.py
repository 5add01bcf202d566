"""The caches of all workers as one, for the progress line and the run record: bytes and tokens are sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from kvlite.batch.workers.messages import CacheNow, Opened, Report
from kvlite.memory.counts import KVCounts
from kvlite.record.recorder import Reading, Recorder
from kvlite.record.schema import LayerKept

_SUMMED = (
    "budget_bytes", "reserved_bytes", "live_bytes", "peak_bytes", "tokens_seen", "tokens_kept", "tokens_evicted"
)  # fmt: skip


@dataclass
class Memory:
    """The caches as the workers last told of them; `recorder` is given it as if it were one engine."""

    recorder: Recorder
    budget_source: str
    _caches: dict[int, CacheNow] = field(default_factory=dict)
    _readings: dict[int, Reading] = field(default_factory=dict)
    _opened: dict[int, Opened] = field(default_factory=dict)

    def note(self, worker: int, report: Report) -> None:
        """Note what a worker reports."""
        if report.cache is not None:
            now = replace(report.cache, peak_bytes=max(report.cache.peak_bytes, report.cache.counts.live_bytes))
            if (before := self._caches.get(worker)) is not None:  # of other rows, or of a worker that died since
                budget_bytes = max(now.counts.budget_bytes, before.counts.budget_bytes)
                counts = replace(now.counts, budget_bytes=budget_bytes)
                now = replace(now, counts=counts, peak_bytes=max(now.peak_bytes, before.peak_bytes))
            self._caches[worker] = now
        if report.reading is not None:
            self._readings[worker] = report.reading
        if report.opened is not None:
            self._opened[worker] = report.opened
            predicted = _summed(one.predicted for one in self._opened.values())
            self.recorder.opened(report.opened.identity, predicted, self, self.budget_source)

    def lost(self, worker: int) -> None:
        """Note that a worker died: it has no rows any more; its budget and its peak stay."""
        if (last := self._caches.get(worker)) is not None:
            counts = replace(last.counts, live_bytes=0)
            self._caches[worker] = replace(last, counts=counts, allocated_bytes=None, rows=0, rows_used=0)

    @property
    def peak_bytes(self) -> int:
        """The most that the rows of each worker held, together."""
        return sum(cache.peak_bytes for cache in self._caches.values())

    @property
    def budget_bytes(self) -> int:
        """All budgets together."""
        return sum(cache.counts.budget_bytes for cache in self._caches.values())

    @property
    def live_bytes(self) -> int:
        """Bytes that all rows hold now."""
        return sum(cache.counts.live_bytes for cache in self._caches.values())

    @property
    def num_rows(self) -> int:
        """The rows of all workers."""
        return sum(cache.rows for cache in self._caches.values())

    @property
    def rows_used(self) -> int:
        """The rows of all workers that answered when they were last heard of."""
        return sum(cache.rows_used for cache in self._caches.values())

    def counts(self) -> KVCounts:
        """Count all rows of all workers."""
        found = [cache.counts for cache in self._caches.values()] or [one.counts for one in self._readings.values()]
        return replace(found[0], **{name: sum(getattr(one, name) for one in found) for name in _SUMMED})

    def allocated_bytes(self) -> int | None:
        """Bytes that torch's allocators hold on all GPUs; None elsewhere."""
        found = [cache.allocated_bytes for cache in self._caches.values() if cache.allocated_bytes is not None]
        return sum(found) if found else None

    def read(self) -> Reading:
        """All that was measured, where each worker told it last; what is true of one GPU alone is left out."""
        readings = [*self._readings.values()]
        layers = zip(*(one.layers for one in readings), strict=True)
        return replace(
            readings[0],
            counts=self.counts(),
            full_cache_bytes=None,
            terms=_summed(one.terms for one in readings),
            planned=_summed(one.planned for one in readings),
            layers=tuple(
                LayerKept(
                    layer=of[0].layer,
                    kept=sum(one.kept for one in of),
                    heads=[sum(counts) for counts in zip(*(one.heads for one in of), strict=True)],
                    bytes=sum(one.bytes for one in of),
                )
                for of in layers
            ),
            phases=_summed(one.phases for one in readings),
            torch=None,
            gpu=None,
        )


def _summed(of: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in of:
        total.update(one)
    return dict(total)
