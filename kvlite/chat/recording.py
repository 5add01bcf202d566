"""What a chat or a run tells its record: the model, the cache, each answer, the memory at the end.

Reads the engine's own tensors, so that measured bytes are measured; loads no torch itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from kvlite.memory import measure
from kvlite.memory.recorder import RunRecorder
from kvlite.memory.report import ModelIdentity, RequestReport, TorchMemory

if TYPE_CHECKING:
    from kvlite.chat.answer import Answer
    from kvlite.console import Console
    from kvlite.engine.engine import Engine

NONE = "none"
ROW = 0
_TERM_OF_TENSOR = {"pos": "positions", "rot": "positions", "mass": "policy_state"}  # everything else is keys and values


class Recording:
    """Records one run where `report` says: `auto`, a file, or `none`. Leaving the `with` block writes the record."""

    def __init__(self, command: str, report: str, console: Console) -> None:
        self._recorder = None
        if report != NONE:
            self._recorder = RunRecorder(command, sys.argv[1:], report=report, warn=console.warn)
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
        recorder, loaded = self._recorder, engine.loaded
        if recorder is None:
            return
        self._engine = engine
        recorder.model(identity)
        recorder.host(device=loaded.device.type, kernels="torch")
        recorder.plan(predicted)
        recorder.cache(
            engine.counts(ROW),
            source=source,
            bytes_per_token=loaded.shape.kv_bytes_per_token(engine.cache.dtype.itemsize),
            capacity_tokens=engine.plan.slots,
            policy_state_bytes=engine.plan.policy_state_bytes,
        )

    def sample(self) -> None:
        """One point of the timeline: what the cache holds now."""
        if self._recorder is None or self._engine is None:
            return
        counts = self._engine.counts(ROW)
        is_first = counts.tokens_evicted > 0 and not self._has_evicted
        self._has_evicted = self._has_evicted or is_first
        self._recorder.sample(counts.tokens_seen, counts.live_bytes, event="first eviction" if is_first else None)

    def answered(self, answer: Answer, seed: int) -> None:
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
            seed=seed,
            finish_reason=str(answer.finish_reason),
        )
        self._recorder.request(report, completion.kv)

    def _measure(self, recorder: RunRecorder) -> None:
        engine = self._engine
        if engine is None:
            return
        counts, loaded = engine.counts(ROW), engine.loaded
        recorder.counts(
            counts,
            full_cache_bytes=loaded.shape.full_cache_bytes(counts.tokens_seen),
        )
        cuda = loaded.device.type == "cuda"
        recorder.measured(
            measured_terms(engine),
            torch=_allocator(engine) if cuda else None,
            device=measure.device_reading() if cuda else None,
        )
        for name, peak_bytes in engine.meter.peaks.items():
            recorder.phase(name, peak_bytes)


def measured_terms(engine: Engine) -> dict[str, int]:
    """Bytes of the weights and of the cache by the plan's terms, summed over the tensors there are."""
    terms: Counter[str] = Counter(weights=engine.loaded.weight_bytes)
    for layer in engine.cache.layers.values():
        for name, tensor in layer.tensors.items():
            discard_bytes = tensor.nbytes // (layer.slots + 1)
            terms[_TERM_OF_TENSOR.get(name, "kv")] += tensor.nbytes - discard_bytes
            terms["staging"] += discard_bytes
    if engine.loaded.state is not None:
        terms["constant_state"] = engine.loaded.state.num_bytes
    return dict(terms)


def _allocator(engine: Engine) -> TorchMemory:
    import torch

    device = engine.loaded.device
    return TorchMemory(
        allocated_peak_bytes=torch.cuda.max_memory_allocated(device),
        reserved_peak_bytes=torch.cuda.max_memory_reserved(device),
    )
