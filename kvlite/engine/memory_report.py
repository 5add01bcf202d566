"""What an engine tells a run record: what its cache is, and what everything took, measured on the tensors there are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kvlite.record import measure
from kvlite.record.recorder import RunRecorder
from kvlite.record.schema import LayerKept, TorchMemory

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine

_TERM_OF_TENSOR = {"pos": "positions", "rot": "positions", "statistic": "policy_state"}
"""Every other tensor holds keys and values."""


def record_engine(recorder: RunRecorder, engine: Engine, source: str) -> None:
    """Describe the device and the cache when they are there; `source` says where the budget came from."""
    import torch

    is_cuda = engine.loaded.device.type == "cuda"
    cuda = str(torch.version.cuda) if is_cuda else None
    recorder.host(device=engine.loaded.device.type, kernels=engine.cache.backend.name, cuda=cuda)
    recorder.cache(
        engine.total_counts(),
        source=source,
        bytes_per_token=engine.loaded.shape.kv_bytes_per_token(engine.cache.stored),
        capacity_tokens=engine.plan.slots,
        policy_state_bytes=measured_terms(engine).get("policy_state", 0),
    )


def record_memory(recorder: RunRecorder, engine: Engine) -> None:
    """Measure at the end: every term there are tensors for, the peak of each phase, and on CUDA the device itself."""
    terms = measured_terms(engine)
    recorder.step(engine.step)
    recorder.layers(kept_per_layer(engine))
    if engine.loaded.device.type == "cuda":
        _record_cuda(recorder, engine, terms)
    else:
        recorder.measured(terms)
    for name, peak_bytes in engine.peak_memory.peaks.items():
        recorder.phase(name, peak_bytes)


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


def kept_per_layer(engine: Engine) -> list[LayerKept]:
    """What each attention layer holds now, summed over the rows."""
    cache, kept = engine.cache, []
    for index, layer in cache.layers.items():
        live = sum(cache.live(row, layer.num_slots) for row in range(engine.rows))
        kept.append(LayerKept(layer=index, kept=live, bytes=live * layer.slot_bytes))
    return kept


def allocated_bytes(engine: Engine) -> int | None:
    """What torch's allocator holds on the GPU now; None elsewhere."""
    import torch

    return torch.cuda.memory_allocated(engine.loaded.device) if engine.loaded.device.type == "cuda" else None


def _record_cuda(recorder: RunRecorder, engine: Engine, terms: dict[str, int]) -> None:
    """What the allocator held at its peak besides weights and cache is activations and scratch."""
    import torch

    device = engine.loaded.device
    peak = engine.peak_memory
    beside = max(peak.peaks.get("prefill", 0), peak.peaks.get("decode", 0)) - sum(terms.values())
    peaks = TorchMemory(allocated_peak_bytes=max(peak.peaks.values()), reserved_peak_bytes=peak.reserved_peak_bytes)
    reading = measure.device_reading(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    terms = {**terms, "activations": max(0, beside)}
    if engine.graphs is not None:
        terms["graphs"] = engine.graphs.recorder.num_bytes  # reserved, and to the allocator nobody's
    recorder.measured(terms, torch=peaks, device=reading)
