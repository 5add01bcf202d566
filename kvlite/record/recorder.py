"""The record of one run, collected in bounded memory while it runs and written when it ends. Loads no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from heapq import heappush, heappushpop
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Protocol

from kvlite.errors import OutOfMemory, UsageError, is_out_of_memory
from kvlite.memory.counts import KVCounts
from kvlite.record import measure
from kvlite.record.schema import (
    BatchReport,
    DeviceMemory,
    HostFacts,
    KVReport,
    LayerKept,
    MemoryTerm,
    ModelIdentity,
    PhasePeak,
    RequestReport,
    RunRecord,
    TimelinePoint,
    TorchMemory,
    TurnReport,
)
from kvlite.record.store import RunRecords, new_run_id, write_whole

MAX_POINTS = 1000
MAX_REQUESTS = 1000
MAX_WARNINGS = 100
MAX_SLOWEST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Bytes by the plan's terms, the cache's counts and layers, the peak of each phase; `torch` and `gpu` on a GPU.

    `capacity_tokens` are slots per KV head. `full_cache_bytes` is None where several rows hold conversations. Those of
    the `planned` bytes that are known take the place of what was predicted: a row that grows has its slots by then from
    another plan.
    """

    host: HostFacts
    counts: KVCounts
    bytes_per_token: int
    capacity_tokens: int
    full_cache_bytes: int | None
    terms: Mapping[str, int]
    layers: tuple[LayerKept, ...]
    phases: Mapping[str, int]
    planned: Mapping[str, int] = field(default_factory=dict)
    torch: TorchMemory | None = None
    gpu: measure.DeviceReading | None = None


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """The tokens of all answers of a batch so far, and the rows that answer of those there are."""

    tokens_generated: int
    rows_used: int
    rows: int


class ReadableEngine(Protocol):
    """An engine, as far as a record asks it."""

    def counts(self) -> KVCounts:
        """Count all rows."""

    def allocated_bytes(self) -> int | None:
        """Bytes that torch's allocator holds on the GPU now; None elsewhere."""

    def read(self) -> Reading:
        """Measure everything."""


class KeptTurn(Protocol):
    """A turn of a chat, as far as a record notes it."""

    @property
    def number(self) -> int:
        """Its place, from 1."""

    @property
    def tokens(self) -> int:
        """Its length."""

    @property
    def share(self) -> float:
        """The part of it that is kept."""

    @property
    def is_pinned(self) -> bool:
        """True where nothing more of it is evicted."""


class Timeline:
    """Keeps one point of every `stride` samples; when full, halves its `points` and doubles the stride.

    Of two points that are merged the one with an event stays, else that of more bytes. `max_points` is even.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self.points: list[TimelinePoint] = []
        self._max_points, self._stride, self._num_samples = max_points, 1, 0

    def add(self, point: TimelinePoint) -> None:
        """Take one sample."""
        if self._num_samples % self._stride:
            self.points[-1] = _pick(self.points[-1], point)
        else:
            self.points.append(point)
        self._num_samples += 1
        if self._num_samples == self._max_points * self._stride:
            self.points = [_pick(*pair) for pair in zip(self.points[::2], self.points[1::2], strict=True)]
            self._stride *= 2


class Recorder:
    """Takes values while a command runs; leaving the `with` block writes the record and never fails the run.

    `report` is `auto` (the state folder), `none` (keep no record) or a file's path.
    `warn` gets one message when the record cannot be written.
    """

    def __init__(
        self,
        command: str,
        argv: Sequence[str],
        *,
        report: str = "auto",
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.report = report
        self._warn = warn
        self._start_s = time.monotonic()
        started = datetime.now(UTC)
        self._record = RunRecord(
            run_id=new_run_id(started), command=command, argv=list(argv), started=started, ended=started, exit_code=0
        )
        self._predicted: dict[str, int] = {}
        self._measured: dict[str, int] = {}
        self._budget_source = ""
        self._timeline = Timeline()
        self._has_evicted = False
        self._peak_bytes = self._peak_before_bytes = 0  # of the cache there is, and of those before it
        self._is_within_budget = True
        self._turns: list[TurnReport] = []
        self._sums = {"tokens_seen": 0, "tokens_kept": 0, "tokens_evicted": 0}  # over all answers, for a batch
        self._engine: ReadableEngine | None = None
        self._order = count()
        self._slowest: list[tuple[float, int, RequestReport]] = []  # a heap

    def model(self, identity: ModelIdentity, device: str) -> None:
        """Note the weights that run, and the kind of device."""
        self._record.model, self._record.host.device = identity, device

    def opened(
        self, identity: ModelIdentity, predicted: Mapping[str, int], engine: ReadableEngine, source: str
    ) -> None:
        """Note model and cache when they are there: bytes `predicted` by term, and the budget's `source`."""
        if self.report != "none":
            self._record.model, self._predicted, self._budget_source = identity, dict(predicted), source
            self._engine = engine  # last, because who leaves while a model loads measures what is there

    def sample(self, progress: BatchProgress | None = None) -> None:
        """Add a point to the timeline: the cache as it is now, and how far a batch is."""
        if self._engine is None:
            return
        counts = self._engine.counts()
        is_first = counts.tokens_evicted > 0 and not self._has_evicted
        self._has_evicted |= is_first
        self._peak_bytes = max(self._peak_bytes, counts.live_bytes)
        self._is_within_budget &= counts.live_bytes <= counts.budget_bytes
        self._add_point(counts, "first eviction" if is_first else None, progress)

    def changed(self, how: str, predicted: Mapping[str, int]) -> None:
        """Note that the cache was exchanged for one of bytes `predicted` by term, which has a peak of its own."""
        if self._engine is not None:
            self._peak_before_bytes = max(self._peak_before_bytes, self._peak_bytes)
            self._peak_bytes, self._predicted = 0, dict(predicted)
            self._add_point(self._engine.counts(), how)

    def released(self) -> None:
        """Let go of the engine: another model follows, with a cache that has a peak of its own."""
        self._peak_before_bytes, self._peak_bytes = max(self._peak_before_bytes, self._peak_bytes), 0
        self._engine = None

    def turns(self, kept: Sequence[KeptTurn]) -> None:
        """Note what is kept of the turns of a chat."""
        self._turns = [
            TurnReport(turn=turn.number, tokens=turn.tokens, kept=turn.share, pinned=turn.is_pinned) for turn in kept
        ]

    def _add_point(self, counts: KVCounts, event: str | None, progress: BatchProgress | None = None) -> None:
        assert self._engine is not None
        self._timeline.add(
            TimelinePoint(
                t_s=round(time.monotonic() - self._start_s, 3),
                tokens_seen=counts.tokens_seen,
                kv_bytes=counts.live_bytes,
                allocated_bytes=self._engine.allocated_bytes(),
                budget_bytes=counts.budget_bytes,
                event=event,
                **({} if progress is None else asdict(progress)),
            )
        )

    def answered(self, request: RequestReport, kv: KVCounts) -> None:
        """Note an answer; `kv` counts its row. Beyond 1,000 answers only the sums go on."""
        self._peak_bytes = max(self._peak_bytes, request.kv_peak_bytes)
        for name in self._sums:
            self._sums[name] += getattr(kv, name)
        slow = (request.total_s or 0.0, -next(self._order), request)  # of two that took as long the first stays
        (heappush if len(self._slowest) < MAX_SLOWEST else heappushpop)(self._slowest, slow)
        if len(self._record.requests) < MAX_REQUESTS:
            self._record.requests.append(request)
        else:
            self._record.requests_left_out += 1

    def batch(self, report: BatchReport, peak_bytes: int) -> None:
        """Note how a batch went; the tokens of `kv` are then sums over all its answers."""
        self._record.batch = report
        report.slowest = [request for _, _, request in sorted(self._slowest, reverse=True)]
        self._peak_bytes = max(self._peak_bytes, peak_bytes)

    def term(self, name: str, num_bytes: int) -> None:
        """Note measured bytes that no engine knows of."""
        self._measured[name] = num_bytes

    def warning(self, text: str) -> None:
        """Keep something the user was warned of; the first 100."""
        if len(self._record.warnings) < MAX_WARNINGS:
            self._record.warnings.append(text)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.report == "none":
            return
        self._complete(_exit_code(error))
        try:
            if self.report == "auto":
                RunRecords().save(self._record)
            else:
                write_whole(f"{self._record.to_json()}\n", Path(self.report))
        except OSError as failure:
            place = failure.filename or ("the state folder" if self.report == "auto" else self.report)
            self._warn(f"no run record: cannot write {place}: {failure.strerror}; give --report another file")
        except UsageError as failure:
            self._warn(f"no run record: {failure}")

    def _complete(self, exit_code: int) -> None:
        record, memory = self._record, self._record.memory
        if self._engine is not None:
            self._measure(self._engine.read())
        record.host.ram_total_bytes, record.host.versions = measure.ram_total_bytes(), measure.versions()
        record.exit_code, record.ended = exit_code, datetime.now(UTC)
        record.timeline = self._timeline.points
        memory.terms = [
            MemoryTerm(name=name, predicted_bytes=self._predicted.get(name), measured_bytes=self._measured.get(name))
            for name in dict.fromkeys((*self._predicted, *self._measured))
        ]
        memory.host_rss_peak_bytes = measure.rss_peak_bytes()
        if memory.device is not None and memory.device.self_bytes is not None:
            memory.device.unaccounted_bytes = memory.device.self_bytes - memory.measured_on_device

    def _measure(self, reading: Reading) -> None:
        """Record the engine as it is at the end, and the machine it ran on."""
        counts, gpu, memory = reading.counts, reading.gpu, self._record.memory
        peak_bytes = max(self._peak_bytes, counts.peak_bytes)
        facts = {
            "budget_source": self._budget_source,
            "bytes_per_token": reading.bytes_per_token,
            "capacity_tokens": reading.capacity_tokens,
            "peak_bytes": max(peak_bytes, self._peak_before_bytes),
            "full_cache_bytes": reading.full_cache_bytes,
            "allocated_unused_bytes": max(0, counts.reserved_bytes - peak_bytes),
            "policy_state_bytes": reading.terms.get("policy_state", 0),
            "per_layer": reading.layers,
            "per_turn": self._turns,
            "within_budget": self._is_within_budget and max(peak_bytes, counts.reserved_bytes) <= counts.budget_bytes,
        }
        if self._record.batch is not None:
            facts |= {**self._sums, "full_cache_bytes": None}  # that of the last answer only
        self._record.kv = KVReport.model_validate(asdict(counts) | facts)
        self._record.host = host = reading.host
        self._measured = {**reading.terms, **self._measured}
        self._predicted |= {name: size for name, size in reading.planned.items() if name in self._predicted}
        memory.torch = reading.torch
        memory.phases = [PhasePeak(name=name, peak_bytes=peak) for name, peak in reading.phases.items()]
        if gpu is not None:
            host.gpu, host.driver, host.gpu_total_bytes = gpu.name, gpu.driver, gpu.total_bytes
            memory.device = DeviceMemory.model_validate(gpu, from_attributes=True)


def _exit_code(error: BaseException | None) -> int:
    """The exit code of a process that this error ends; errors of kvlite and typer.Exit carry theirs."""
    if error is None or isinstance(error, BrokenPipeError):
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    if is_out_of_memory(error):
        return OutOfMemory.exit_code
    code = getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1


def _pick(first: TimelinePoint, second: TimelinePoint) -> TimelinePoint:
    return max(second, first, key=lambda point: (point.event is not None, point.kv_bytes))
