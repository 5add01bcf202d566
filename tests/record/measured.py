"""An engine as a record asks it, without an engine: it holds what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvlite.memory.counts import KVCounts
from kvlite.record.measure import DeviceReading
from kvlite.record.recorder import Reading
from kvlite.record.schema import HostFacts, LayerKept, TorchMemory


def counts(
    *, live: int = 0, peak: int = 0, reserved: int = 990, budget: int = 1000, seen: int = 0, kept: int = 10
) -> KVCounts:
    kept = min(seen, kept)
    return KVCounts(budget, reserved, live, peak, seen, kept, seen - kept, "heavy-hitter", "float32")


@dataclass
class FakeEngine:
    """Reads as its fields say; a test changes `held` while it runs."""

    held: KVCounts = field(default_factory=counts)
    terms: dict[str, int] = field(default_factory=dict)
    gpu: DeviceReading | None = None
    torch: TorchMemory | None = None

    def counts(self) -> KVCounts:
        return self.held

    def allocated_bytes(self) -> int | None:
        return 500

    def read(self) -> Reading:
        return Reading(
            host=HostFacts(device="cpu", kernels="torch", step="eager"),
            counts=self.held,
            bytes_per_token=8,
            capacity_tokens=100,
            full_cache_bytes=2000,
            terms=self.terms,
            layers=(LayerKept(layer=0, kept=7.5, bytes=60),),
            phases={"prefill": 70},
            torch=self.torch,
            gpu=self.gpu,
        )
