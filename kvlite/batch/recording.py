"""What a batch tells its run record: the whole cache, every outcome, the sums at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvlite.batch.outcome import Outcome
from kvlite.batch.tally import Tally
from kvlite.memory.counts import KVCounts
from kvlite.memory.recorder import RunRecorder
from kvlite.memory.report import BatchReport, RequestReport

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine


def whole_cache(engine: Engine) -> KVCounts:
    """The counts of all rows together: bytes and tokens are sums."""
    rows = [engine.counts(row) for row in range(engine.rows)]
    live_bytes = sum(row.live_bytes for row in rows)
    return replace(
        rows[0],
        budget_bytes=engine.plan.budget_bytes,
        reserved_bytes=engine.plan.reserved_bytes,
        live_bytes=live_bytes,
        peak_bytes=live_bytes,
        tokens_seen=sum(row.tokens_seen for row in rows),
        tokens_kept=sum(row.tokens_kept for row in rows),
        tokens_evicted=sum(row.tokens_evicted for row in rows),
    )


def record_cache(recorder: RunRecorder, engine: Engine, source: str) -> None:
    """Describe the cache when it is made; `source` says where the budget came from."""
    recorder.cache(
        whole_cache(engine),
        source=source,
        bytes_per_token=engine.loaded.shape.kv_bytes_per_token(engine.cache.dtype.itemsize),
        capacity_tokens=engine.plan.slots,
        policy_state_bytes=engine.plan.policy_state_bytes,
    )


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
    counts = whole_cache(engine)
    recorder.sample(counts.tokens_seen, counts.live_bytes)


def record_end(recorder: RunRecorder, tally: Tally, engine: Engine, peak_bytes: int, seconds: float) -> None:
    """The sums, and the cache as it is now."""
    recorder.counts(replace(whole_cache(engine), peak_bytes=peak_bytes))
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
