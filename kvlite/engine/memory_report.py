"""The memory of an engine for a run record, measured on the tensors there are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch

from kvlite.cache.layer import Layer
from kvlite.engine.engine import Engine
from kvlite.memory.counts import KVCounts
from kvlite.memory.prediction import MemoryPlan, cache_terms
from kvlite.record.measure import device_reading
from kvlite.record.recorder import Reading
from kvlite.record.schema import HostFacts, LayerKept, TorchMemory

_TERM_OF_TENSOR = {"pos": "positions", "rot": "positions", "statistic": "policy_state", "bias": "policy_state"}
"""Every other tensor holds keys and values."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """An engine as a recorder reads it: a kvlite.record.recorder.ReadableEngine."""

    engine: Engine

    def counts(self) -> KVCounts:
        """Count all rows. The peak of several is what they hold now, because each had its own at another time."""
        counts = self.engine.rows.total_counts()
        return counts if len(self.engine.rows) == 1 else replace(counts, peak_bytes=counts.live_bytes)

    def allocated_bytes(self) -> int | None:
        """Bytes that torch's allocator holds on the GPU now; None elsewhere."""
        device = self.engine.loaded.device
        return torch.cuda.memory_allocated(device) if device.type == "cuda" else None

    def read(self) -> Reading:
        """Measure everything. What a GPU's allocator held at its peak besides weights and cache is activations."""
        engine, counts, peak = self.engine, self.counts(), self.engine.peak_memory
        shape, device, cache = engine.loaded.shape, engine.loaded.device, engine.cache
        terms, peaks, allocator, gpu = measured_terms(engine), peak.peaks, None, None
        if device.type == "cuda":
            beside = max(peaks.get("prefill", 0), peaks.get("decode", 0)) - sum(terms.values())
            terms["activations"] = max(0, beside)
            if engine.graphs is not None:
                terms["graphs"] = engine.graphs.recorder.num_bytes  # reserved, and to the allocator nobody's
            allocator = TorchMemory(
                allocated_peak_bytes=max(peaks.values()), reserved_peak_bytes=peak.reserved_peak_bytes
            )
            gpu = device_reading(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return Reading(
            host=HostFacts(
                device=device.type,
                kernels=cache.backend.name,
                step=engine.step,
                cuda=str(torch.version.cuda) if device.type == "cuda" else None,
            ),
            counts=counts,
            bytes_per_token=shape.kv_bytes_per_token(cache.stored),
            capacity_tokens=engine.plan.slots,
            full_cache_bytes=shape.full_cache_bytes(counts.tokens_seen) if len(engine.rows) == 1 else None,
            terms=terms,
            layers=tuple(_kept(engine, layer) for layer in cache.layers.values()),
            phases=peaks,
            planned=MemoryPlan(cache_terms(engine.plan)).predicted(),
            torch=allocator,
            gpu=gpu,
        )


def _kept(engine: Engine, layer: Layer) -> LayerKept:
    """The tokens of all rows in a layer, the mean over its KV heads, and their bytes."""
    live = {
        part: sum(engine.cache.live(row, part.num_slots) for row in range(len(engine.rows))) for part in layer.parts
    }
    kept = sum(part.shape.kv_heads * count for part, count in live.items()) / layer.shape.kv_heads
    size = sum(part.slot_bytes * count for part, count in live.items())
    heads = {head: count for part, count in live.items() for head in part.heads.numbers}
    return LayerKept(layer=layer.index, kept=kept, heads=[heads[head] for head in sorted(heads)], bytes=size)


def measured_terms(engine: Engine) -> dict[str, int]:
    """Bytes of the weights and of the cache by the plan's terms, summed over the tensors there are."""
    terms: Counter[str] = Counter(weights=engine.loaded.weight_bytes)
    for part in engine.cache.parts:
        for name, tensor in part.tensors.items():
            discard_bytes = tensor.nbytes // (part.num_slots + 1)
            terms[_TERM_OF_TENSOR.get(name, "kv")] += tensor.nbytes - discard_bytes
            terms["staging"] += discard_bytes
    if engine.cache.backend.scratch_bytes:
        terms["scratch"] = engine.cache.backend.scratch_bytes
    if engine.graphs is not None:
        terms["step"] = engine.graphs.num_bytes
    if engine.loaded.state is not None:
        terms["constant_state"] = engine.loaded.state.num_bytes
    return dict(terms)
