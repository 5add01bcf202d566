"""The outcome of one entry: its answers, or a failure in their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvlite.batch.item import Entry, Failure
from kvlite.engine.request import FinishReason, Timing
from kvlite.memory.counts import KVCounts
from kvlite.record.schema import RequestReport


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer; `kv` counts the row it was generated in."""

    text: str
    thinking: str
    finish_reason: FinishReason
    completion_tokens: int
    seed: int
    kv: KVCounts
    timing: Timing


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an entry: all of its choices and no failure, or a failure with the choices that had tokens by then."""

    entry: Entry
    choices: tuple[Choice, ...] = ()
    prompt_tokens: int = 0
    failure: Failure | None = None
    attempt: int = 1
    deduped_from: str | None = None

    @property
    def completion_tokens(self) -> int:
        return sum(choice.completion_tokens for choice in self.choices)

    def reports(self) -> Iterator[tuple[RequestReport, KVCounts]]:
        """Entries of a run record, with the counts of each one's row; none for answers of another entry."""
        for choice in self.choices if self.deduped_from is None else ():
            report = RequestReport(
                id=self.entry.key,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=choice.completion_tokens,
                ttft_s=choice.timing.ttft_s,
                tok_s=choice.timing.tok_s,
                kv_peak_bytes=choice.kv.peak_bytes,
                tokens_evicted=choice.kv.tokens_evicted,
                seed=choice.seed,
                finish_reason=choice.finish_reason.value if self.failure is None else "error",
            )
            yield report, choice.kv
