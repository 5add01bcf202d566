"""What a batch tells its run record: the model, the whole cache, every outcome, the sums at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvlite.batch.outcome import Outcome
from kvlite.batch.tally import Tally
from kvlite.engine.memory_report import allocated_bytes, record_engine, record_memory
from kvlite.record.recorder import RunRecorder
from kvlite.record.schema import BatchReport, RequestReport

if TYPE_CHECKING:
    from kvlite.batch.job import Opened
    from kvlite.engine.engine import Engine


def record_start(recorder: RunRecorder, opened: Opened, budget_source: str) -> None:
    """Note the model, what was planned for it, and the cache it got."""
    recorder.model(opened.identity())
    recorder.plan(opened.predicted())
    record_engine(recorder, opened.engine, budget_source)


def record_outcome(recorder: RunRecorder, outcome: Outcome, engine: Engine) -> None:
    """Note how an entry ended; what never reached the engine has nothing to note."""
    if not outcome.choices or outcome.deduped_from is not None:
        return
    for choice in outcome.choices:
        report = RequestReport(
            id=outcome.entry.key,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=choice.completion_tokens,
            ttft_s=choice.timing.ttft_s,
            tok_s=choice.timing.tok_s,
            kv_peak_bytes=choice.kv.peak_bytes,
            tokens_evicted=choice.kv.tokens_evicted,
            seed=choice.seed,
            finish_reason=choice.finish_reason.value if outcome.failure is None else "error",
        )
        recorder.request(report, choice.kv)
    counts = engine.total_counts()
    recorder.sample(counts.tokens_seen, counts.live_bytes, allocated_bytes(engine))


def record_end(recorder: RunRecorder, tally: Tally, engine: Engine, peak_bytes: int, seconds: float) -> None:
    """The sums, and memory and cache as they are now."""
    record_memory(recorder, engine)
    recorder.counts(replace(engine.total_counts(), peak_bytes=peak_bytes))
    recorder.batch(
        BatchReport(
            total=tally.resumed + tally.ok + tally.failed,
            ok=tally.ok,
            failed=tally.failed,
            resumed=tally.resumed,
            deduped=tally.deduped,
            tokens_per_s=tally.speed(seconds),
        )
    )
