"""What a chat or a run tells its record: the model, the cache, each answer, the memory at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from kvlite.engine.memory_report import allocated_bytes, record_engine, record_memory
from kvlite.record.recorder import RunRecorder
from kvlite.record.schema import ModelIdentity, RequestReport

if TYPE_CHECKING:
    from kvlite.llm.answer import Answer
    from kvlite.console import Console
    from kvlite.engine.engine import Engine

NONE = "none"
ROW = 0


class Recording:
    """Records one run where `report` says: `auto`, a file, or `none`. Leaving the `with` block writes the record."""

    def __init__(self, command: str, report: str, console: Console) -> None:
        self._recorder = None
        if report != NONE:
            self._recorder = RunRecorder(command, sys.argv[1:], report=report, warn=console.warn)
            console.on_warning = self._recorder.warning
        self._engine: Engine | None = None
        self._has_evicted = False

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorder is not None:
            self._measure(self._recorder)
            self._recorder.__exit__(kind, error, trace)

    def opened(self, identity: ModelIdentity, engine: Engine, source: str, predicted: Mapping[str, int]) -> None:
        """The model is loaded and its cache allocated; `source` says where the budget came from."""
        if self._recorder is None:
            return
        self._recorder.model(identity)
        self._recorder.plan(predicted)
        record_engine(self._recorder, engine, source)
        self._engine = engine  # last, because who leaves while a model loads measures what is there

    def sample(self) -> None:
        """One point of the timeline: what the cache holds now."""
        if self._recorder is None or self._engine is None:
            return
        counts = self._engine.counts(ROW)
        is_first = counts.tokens_evicted > 0 and not self._has_evicted
        self._has_evicted = self._has_evicted or is_first
        event = "first eviction" if is_first else None
        self._recorder.sample(counts.tokens_seen, counts.live_bytes, allocated_bytes(self._engine), event)

    def answered(self, answer: Answer) -> None:
        """An answer ended."""
        if self._recorder is None:
            return
        completion = answer.completion
        report = RequestReport(
            id=completion.request_id,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=len(completion.ids),
            ttft_s=completion.timing.ttft_s,
            tok_s=completion.timing.tok_s,
            kv_peak_bytes=completion.kv.peak_bytes,
            tokens_evicted=completion.evicted,
            seed=answer.seed,
            finish_reason=str(answer.finish_reason),
        )
        self._recorder.request(report, completion.kv)

    def checkpoints(self, peak_bytes: int) -> None:
        """The most host memory that the way back to earlier turns took."""
        if self._recorder is not None:
            self._recorder.measured({"checkpoints": peak_bytes})

    def _measure(self, recorder: RunRecorder) -> None:
        if self._engine is None:
            return
        counts = self._engine.counts(ROW)
        recorder.counts(counts, full_cache_bytes=self._engine.loaded.shape.full_cache_bytes(counts.tokens_seen))
        record_memory(recorder, self._engine)
