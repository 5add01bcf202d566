"""Collects one run's record while it runs, in bounded memory, and writes it when it ends. Loads no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from kvlite.errors import OutOfMemory, UsageError
from kvlite.memory.counts import KVCounts
from kvlite.record import measure
from kvlite.record.schema import (
    BatchReport,
    DeviceMemory,
    HostFacts,
    KVReport,
    LayerKept,
    MemoryReport,
    MemoryTerm,
    ModelIdentity,
    PhasePeak,
    RequestReport,
    RunRecord,
    TimelinePoint,
    TorchMemory,
    merge_terms,
)
from kvlite.record.store import RunRecords, new_run_id, write_record
from kvlite.record.timeline import Timeline

AUTO, NONE = "auto", "none"
MAX_REQUESTS = 1000
MAX_WARNINGS = 100


class RunRecorder:
    """Takes values as the run goes; leaving the `with` block writes the record and never fails the run.

    `report` is `auto` (the state folder), `none` (keep no record) or a file's path, checked here: raises UsageError.
    `warn` is told, once, when the record cannot be written. `clock` gives seconds.
    """

    def __init__(
        self,
        command: str,
        argv: Sequence[str],
        *,
        report: str = AUTO,
        warn: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = None if report in (AUTO, NONE) else _writable(report)
        self._warn = warn
        self._clock = clock
        self._start_s = clock()
        started = datetime.now(UTC)
        self._record = RunRecord(
            run_id=new_run_id(started), command=command, argv=list(argv), started=started, ended=started, exit_code=0
        )
        self._predicted: dict[str, int] = {}
        self._measured: dict[str, int] = {}
        self._phases: dict[str, int] = {}
        self._timeline = Timeline()
        self._sums = [0, 0, 0]  # tokens seen, kept, evicted over all answers, for a batch
        self._is_finished = report == NONE

    @property
    def run_id(self) -> str:
        """What `kvlite report` calls this run."""
        return self._record.run_id

    def model(self, identity: ModelIdentity) -> None:
        """Say which weights run."""
        self._record.model = identity

    def host(self, *, device: str, kernels: str | None = None, cuda: str | None = None) -> None:
        """Say where it runs; the rest is read from the machine when the run ends."""
        self._record.host = HostFacts(device=device, kernels=kernels, cuda=cuda)

    def step(self, step: str) -> None:
        """Say how decode steps ran, after `host`: only the end of a run knows."""
        self._record.host.step = step

    def cache(
        self,
        counts: KVCounts,
        *,
        source: str | None,
        bytes_per_token: int,
        capacity_tokens: int,
        policy_state_bytes: int,
    ) -> None:
        """Describe the cache when it is made, and again after a change of budget; its peak starts afresh."""
        earlier = self._record.kv
        facts = {
            "budget_source": source,
            "bytes_per_token": bytes_per_token,
            "capacity_tokens": capacity_tokens,
            "policy_state_bytes": policy_state_bytes,
            "allocated_unused_bytes": 0,
            "within_budget": earlier is None or earlier.within_budget,
        }
        self._record.kv = KVReport.model_validate(counts.as_dict() | facts)
        self._hold(counts)

    def counts(self, counts: KVCounts, *, full_cache_bytes: int | None = None) -> None:
        """Bring the whole cache's counts up to date: after a turn, or when the run ends. `cache` comes first."""
        kv = self._record.kv
        assert kv is not None, "counts before cache"
        for name in ("budget_bytes", "reserved_bytes", "live_bytes", "tokens_seen", "tokens_kept", "tokens_evicted"):
            setattr(kv, name, getattr(counts, name))
        kv.full_cache_bytes = full_cache_bytes if full_cache_bytes is not None else kv.full_cache_bytes
        self._hold(counts)

    def layers(self, kept: Sequence[LayerKept]) -> None:
        """What each layer holds; `cache` comes first."""
        assert self._record.kv is not None, "layers before cache"
        self._record.kv.per_layer = list(kept)

    def plan(self, terms: Mapping[str, int]) -> None:
        """Predicted bytes per term, in the order to show."""
        self._predicted.update(terms)

    def measured(
        self,
        terms: Mapping[str, int],
        *,
        torch: TorchMemory | None = None,
        device: measure.DeviceReading | None = None,
    ) -> None:
        """Measured bytes per term under the plan's names; `torch` and `device` on a GPU."""
        self._measured.update(terms)
        self._record.memory.torch = torch or self._record.memory.torch
        if device is not None:
            host = self._record.host
            host.gpu, host.driver, host.gpu_total_bytes = device.name, device.driver, device.total_bytes
            self._record.memory.device = DeviceMemory(
                total_bytes=device.total_bytes,
                free_bytes=device.free_bytes,
                self_bytes=device.self_bytes,
                other_processes_bytes=device.other_processes_bytes,
            )

    def phase(self, name: str, peak_bytes: int) -> None:
        """The peak memory of a phase (`load`, `prefill`, `decode`); the largest is kept."""
        self._phases[name] = max(peak_bytes, self._phases.get(name, 0))

    def request(self, request: RequestReport, kv: KVCounts) -> None:
        """One answer ended; `kv` counts its row. Beyond 1,000 answers only the sums go on."""
        for place, tokens in enumerate((kv.tokens_seen, kv.tokens_kept, kv.tokens_evicted)):
            self._sums[place] += tokens
        if len(self._record.requests) < MAX_REQUESTS:
            self._record.requests.append(request)
        else:
            self._record.requests_left_out += 1

    def sample(
        self, tokens_seen: int, kv_bytes: int, allocated_bytes: int | None = None, event: str | None = None
    ) -> None:
        """One point of the timeline; `kv_bytes` are the live bytes."""
        self._timeline.add(
            TimelinePoint(
                t_s=round(self._clock() - self._start_s, 3),
                tokens_seen=tokens_seen,
                kv_bytes=kv_bytes,
                allocated_bytes=allocated_bytes,
                event=event,
            )
        )
        kv = self._record.kv
        if kv is not None and kv_bytes > kv.peak_bytes:
            kv.peak_bytes = kv_bytes
            kv.within_budget = kv.within_budget and kv_bytes <= kv.budget_bytes

    def batch(self, report: BatchReport) -> None:
        """How the batch went; the tokens of `kv` are then sums over all its answers."""
        self._record.batch = report

    def warning(self, text: str) -> None:
        """Keep something the user was warned of; the first 100."""
        if len(self._record.warnings) < MAX_WARNINGS:
            self._record.warnings.append(text)

    def finish(self, exit_code: int) -> None:
        """Complete and write the record; a second call does nothing."""
        if self._is_finished:
            return
        self._is_finished = True
        self._record.exit_code = exit_code
        self._complete()
        try:
            if self._path is None:
                RunRecords().save(self._record)
            else:
                write_record(self._record, self._path)
        except OSError as error:
            place = error.filename or self._path or "the state folder"
            self._warn(f"no run record: cannot write {place}: {error.strerror}; give --report another file")
        except UsageError as error:
            self._warn(f"no run record: {error}")

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(_exit_code(error))

    def _hold(self, counts: KVCounts) -> None:
        """Hold the counts against their own budget: a later, larger one does not excuse them."""
        kv = self._record.kv
        assert kv is not None
        kv.peak_bytes = max(kv.peak_bytes, counts.peak_bytes)
        kv.allocated_unused_bytes = max(0, kv.reserved_bytes - kv.peak_bytes)
        kv.within_budget = kv.within_budget and max(kv.peak_bytes, kv.reserved_bytes) <= kv.budget_bytes

    def _complete(self) -> None:
        record = self._record
        record.ended = datetime.now(UTC)
        record.timeline = self._timeline.points()
        record.host.ram_total_bytes = measure.ram_total_bytes()
        record.host.versions = measure.installed_versions()
        if record.kv is not None:
            record.kv.allocated_unused_bytes = max(0, record.kv.reserved_bytes - record.kv.peak_bytes)
            if record.batch is not None:
                record.kv.tokens_seen, record.kv.tokens_kept, record.kv.tokens_evicted = self._sums
        _account(record.memory, merge_terms(self._predicted, self._measured))
        record.memory.phases = [PhasePeak(name=name, peak_bytes=peak) for name, peak in self._phases.items()]


def _account(memory: MemoryReport, terms: list[MemoryTerm]) -> None:
    memory.terms = terms
    memory.host_rss_peak_bytes = measure.rss_peak_bytes()
    device = memory.device
    if device is not None and device.self_bytes is not None:
        device.unaccounted_bytes = device.self_bytes - memory.measured_on_device


def _writable(report: str) -> Path:
    path = Path(report)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--report {report}: {'a folder' if path.is_dir() else 'no such folder'}; give a file's name")
    return path


def _exit_code(error: BaseException | None) -> int:
    """What the process will end with: every error that knows says so, as does typer.Exit."""
    if error is None or isinstance(error, BrokenPipeError):
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without loading torch
        return OutOfMemory.exit_code
    code = getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1
