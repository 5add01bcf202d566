"""The sums of a batch: for the progress line, the summary and the run record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kvlite.batch.item import Outcome
from kvlite.memory.format import human_bytes


@dataclass
class Tally:
    """Counts of this run; `resumed` lines have their record from an earlier one, `resumed_failed` of them a failed one.

    `total` counts the lines to answer, None where they are not counted beforehand. Of the prompts of all answers
    `shared_tokens` were fed for another. Of the `drafted_tokens` `accepted_tokens` were right. Tokens of deduplicated
    answers are counted once; `generated` counts them as they come.
    """

    total: int | None = None
    resumed: int = 0
    resumed_failed: int = 0
    ok: int = 0
    deduped: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_evicted: int = 0
    shared_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    generated: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Lines that failed in this run."""
        return self.failures.total()

    @property
    def done(self) -> int:
        """Lines that have their record."""
        return self.resumed + self.ok + self.failed

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.failure is not None:
            self.failures[outcome.failure.code.value] += 1
        else:
            self.ok += 1
        if outcome.deduped_from is not None:
            self.deduped += 1
            return
        self.prompt_tokens += outcome.prompt_tokens if outcome.choices else 0
        self.completion_tokens += outcome.completion_tokens
        self.shared_tokens += sum(choice.completion.cached_tokens for choice in outcome.choices)
        self.tokens_evicted += sum(choice.kv.tokens_evicted for choice in outcome.choices)
        self.drafted_tokens += sum(choice.completion.drafted for choice in outcome.choices)
        self.accepted_tokens += sum(choice.completion.accepted for choice in outcome.choices)

    def progress(self, seconds: float, num_before: int, rows: str, live_bytes: int, budget_bytes: int) -> str:
        """Write the progress line; `num_before` of the lines to answer were done before, `rows` are in use of how many.

        For example `812/5000 · 3 err · 9.4 req/s · 402 tok/s · 14/16 rows · KV 1.90 GB of 2.00 GB · ETA 07:25`.
        """
        ended = self.ok + self.failed
        done = num_before + ended
        parts = [f"{done}" if self.total is None else f"{done}/{self.total}", f"{self.failed} err"]
        if seconds > 0:
            parts += [f"{ended / seconds:.1f} req/s", f"{self.generated / seconds:.0f} tok/s"]
        parts.append(f"{rows} rows")
        parts.append(f"KV {human_bytes(live_bytes)} of {human_bytes(budget_bytes)}")
        if self.shared_tokens:
            parts.append(f"{self.shared_tokens:,} tok shared")
        if self.total is not None and ended:
            minutes, rest = divmod(round((self.total - done) * seconds / ended), 60)
            parts.append(f"ETA {minutes:02}:{rest:02}")
        return " · ".join(parts)

    def closing(self, seconds: float, peak_bytes: int, budget_bytes: int) -> str:
        """Write the last line of the batch."""
        parts = [f"{self.ok} ok", f"{self.failed} failed"]
        if self.failures:
            parts[-1] += f" ({', '.join(f'{count} {code}' for code, count in self.failures.most_common())})"
        if self.resumed:
            failures = f" ({self.resumed_failed} of them failures)" if self.resumed_failed else ""
            parts.append(f"{self.resumed} resumed{failures}")
        parts += [f"{self.deduped} deduped"] * bool(self.deduped)
        if self.shared_tokens:
            parts.append(f"{self.shared_tokens:,} prompt tokens shared, not fed")
        if self.drafted_tokens:
            parts.append(f"{self.accepted_tokens:,} of {self.drafted_tokens:,} drafted tokens right")
        parts.append(f"{self.generated} tokens at {self._speed(seconds):.1f} tok/s")
        if budget_bytes:  # none where nothing was left to run
            parts.append(f"KV peak {human_bytes(peak_bytes)} of {human_bytes(budget_bytes)}")
            parts.append(f"{self.tokens_evicted} tokens evicted")
        return " · ".join(parts)

    def as_dict(self, seconds: float) -> dict[str, object]:
        """The counts for `--summary` and the run record; the total is that of the lines that have their record."""
        speed = {"tokens_per_s": round(self._speed(seconds), 3), "seconds": round(seconds, 3)}
        return vars(self) | {"total": self.done, "failed": self.failed} | speed

    def _speed(self, seconds: float) -> float:
        return self.generated / seconds if seconds > 0 else 0.0
