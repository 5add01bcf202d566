"""The memory of a running engine at one moment, as values: the part of a record that only an engine can measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from kvlite.memory.counts import KVCounts
from kvlite.record.measure import DeviceReading
from kvlite.record.schema import HostFacts, LayerKept, TorchMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Bytes by the plan's terms, the cache's counts and layers, the peak of each phase; `torch` and `gpu` on a GPU.

    `capacity_tokens` are slots per KV head. `full_cache_bytes` is None where several rows hold conversations.
    """

    host: HostFacts
    counts: KVCounts
    bytes_per_token: int
    capacity_tokens: int
    full_cache_bytes: int | None
    terms: Mapping[str, int]
    layers: tuple[LayerKept, ...]
    phases: Mapping[str, int]
    torch: TorchMemory | None = None
    gpu: DeviceReading | None = None


class ReadableEngine(Protocol):
    """An engine, as far as a record asks it."""

    def counts(self) -> KVCounts:
        """Count all rows."""

    def allocated_bytes(self) -> int | None:
        """Bytes that torch's allocator holds on the GPU now; None elsewhere."""

    def read(self) -> Reading:
        """Measure everything."""
