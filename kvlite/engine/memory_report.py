"""The memory of an engine for a run record, measured on the tensors there are. Loads no torch at import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvlite.memory.counts import KVCounts
from kvlite.record.measure import device_reading
from kvlite.record.recorder import Reading
from kvlite.record.schema import HostFacts, LayerKept, TorchMemory

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine

_TERM_OF_TENSOR = {"pos": "positions", "rot": "positions", "statistic": "policy_state"}
"""Every other tensor holds keys and values."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """An engine as a recorder reads it: a kvlite.record.recorder.ReadableEngine."""

    engine: Engine

    def counts(self) -> KVCounts:
        """Count all rows. The peak of several is what they hold now, because each had its own at another time."""
        counts = self.engine.total_counts()
        return counts if self.engine.rows == 1 else replace(counts, peak_bytes=counts.live_bytes)

    def allocated_bytes(self) -> int | None:
        """Bytes that torch's allocator holds on the GPU now; None elsewhere."""
        if not self._is_cuda:
            return None
        import torch

        return torch.cuda.memory_allocated(self.engine.loaded.device)

    def read(self) -> Reading:
        """Measure everything."""
        import torch

        engine, counts = self.engine, self.counts()
        shape = engine.loaded.shape
        terms = measured_terms(engine)
        reading = Reading(
            host=HostFacts(
                device=engine.loaded.device.type,
                kernels=engine.cache.backend.name,
                step=engine.step,
                cuda=str(torch.version.cuda) if self._is_cuda else None,
            ),
            counts=counts,
            bytes_per_token=shape.kv_bytes_per_token(engine.cache.stored),
            capacity_tokens=engine.plan.slots,
            full_cache_bytes=shape.full_cache_bytes(counts.tokens_seen) if engine.rows == 1 else None,
            terms=terms,
            layers=kept_per_layer(engine),
            phases=dict(engine.peak_memory.peaks),
        )
        return self._with_gpu(reading, terms) if self._is_cuda else reading

    @property
    def _is_cuda(self) -> bool:
        return self.engine.loaded.device.type == "cuda"

    def _with_gpu(self, reading: Reading, terms: Mapping[str, int]) -> Reading:
        """Add the GPU. What the allocator held at its peak besides weights and cache is activations and scratch."""
        import torch

        engine, peak = self.engine, self.engine.peak_memory
        beside = max(peak.peaks.get("prefill", 0), peak.peaks.get("decode", 0)) - sum(terms.values())
        terms = {**terms, "activations": max(0, beside)}
        if engine.graphs is not None:
            terms["graphs"] = engine.graphs.recorder.num_bytes  # reserved, and to the allocator nobody's
        return replace(
            reading,
            terms=terms,
            torch=TorchMemory(
                allocated_peak_bytes=max(peak.peaks.values()), reserved_peak_bytes=peak.reserved_peak_bytes
            ),
            gpu=device_reading(f"GPU-{torch.cuda.get_device_properties(engine.loaded.device).uuid}"),
        )


def measured_terms(engine: Engine) -> dict[str, int]:
    """Bytes of the weights and of the cache by the plan's terms, summed over the tensors there are."""
    terms: Counter[str] = Counter(weights=engine.loaded.weight_bytes)
    for layer in engine.cache.layers.values():
        for name, tensor in layer.tensors.items():
            discard_bytes = tensor.nbytes // (layer.num_slots + 1)
            terms[_TERM_OF_TENSOR.get(name, "kv")] += tensor.nbytes - discard_bytes
            terms["staging"] += discard_bytes
    if engine.cache.backend.scratch_bytes:
        terms["scratch"] = engine.cache.backend.scratch_bytes
    if engine.graphs is not None:
        terms["step"] = engine.graphs.num_bytes
    if engine.loaded.state is not None:
        terms["constant_state"] = engine.loaded.state.num_bytes
    return dict(terms)


def kept_per_layer(engine: Engine) -> tuple[LayerKept, ...]:
    """Tokens and bytes that each attention layer holds now, summed over the rows."""
    cache, kept = engine.cache, []
    for index, layer in cache.layers.items():
        live = sum(cache.live(row, layer.num_slots) for row in range(engine.rows))
        kept.append(LayerKept(layer=index, kept=live, bytes=live * layer.slot_bytes))
    return tuple(kept)
