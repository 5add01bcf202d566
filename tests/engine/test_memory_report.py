"""A reading of an engine adds up to its plan, and on a GPU to the peak of torch's allocator."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kvlite.engine.engine import Engine
from kvlite.engine.memory_report import EngineMemory
from kvlite.engine.request import Request
from kvlite.record.measure import DeviceReading
from tests.architectures import tiny_model
from tests.engine_for_tests import admitted, answers, make_engine

CACHE_TERMS = ("kv", "policy_state", "positions", "staging")


def used(rows: int) -> Engine:
    engine = make_engine(admitted(tiny_model("llama", {})), "24tok", rows=rows)
    answers(engine, [Request(str(i), tuple(range(3, 13)), max_tokens=4) for i in range(rows)])
    return engine


def test_the_terms_of_the_cache_are_what_was_planned_and_layers_what_is_live() -> None:
    engine = used(rows=1)
    reading = EngineMemory(engine).read()
    assert sum(reading.terms[name] for name in CACHE_TERMS) == engine.plan.reserved_bytes
    assert reading.terms["weights"] == engine.loaded.weight_bytes
    assert sum(layer.bytes for layer in reading.layers) == reading.counts.live_bytes > 0
    assert reading.full_cache_bytes == engine.loaded.shape.full_cache_bytes(reading.counts.tokens_seen)
    assert (reading.host.cuda, reading.torch, reading.gpu) == (None, None, None)


def test_several_rows_have_no_common_peak_and_no_common_full_cache() -> None:
    reading = EngineMemory(used(rows=2)).read()
    assert reading.counts.peak_bytes == reading.counts.live_bytes
    assert reading.full_cache_bytes is None


def test_on_a_gpu_the_peak_above_weights_and_cache_is_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = used(rows=1)
    held = sum(EngineMemory(engine).read().terms.values())
    on_gpu = SimpleNamespace(
        loaded=replace(engine.loaded, device=torch.device("cuda")),
        cache=engine.cache,
        plan=engine.plan,
        rows=engine.rows,
        step="eager",
        graphs=None,
        peak_memory=SimpleNamespace(
            peaks={"load": 9, "decode": held + 70, "prefill": held + 30}, reserved_peak_bytes=5
        ),
    )
    driver = DeviceReading("GPU of a test", "570", 100, 30, 50)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr("kvlite.engine.memory_report.device_reading", {"GPU-abc": driver}.get)
    reading = EngineMemory(on_gpu).read()  # type: ignore[arg-type]
    assert (reading.terms["activations"], sum(reading.terms.values())) == (70, held + 70)
    assert reading.torch is not None and reading.gpu == driver
    assert (reading.torch.allocated_peak_bytes, reading.torch.reserved_peak_bytes) == (held + 70, 5)
    assert reading.host.cuda == str(torch.version.cuda)
