"""The lengths to measure; a measurement as one value with the run it was made in, and as JSON. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvlite.record.recorder import Reading
from kvlite.record.schema import ModelIdentity

if TYPE_CHECKING:
    from kvlite.speed.decoding import Point
    from kvlite.speed.measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts of these lengths, decoding after these many tokens, and decoding with all slots full.

    Each timing takes `steps` decode steps and is repeated in `rounds` rounds; all counts are at least 1.
    """

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    drift: tuple[int, ...]
    steps: int = 64
    rounds: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """`reading` is the engine's at the end, `stages` seconds of the start-up in order, `predicted` bytes by term."""

    model: str
    identity: ModelIdentity
    reading: Reading
    device_name: str
    threads: int
    on_full: str
    chunk: int
    weights_read_bytes: int | None
    versions: Mapping[str, str]
    stages: Mapping[str, float]
    measurement: Measurement
    predicted: Mapping[str, int]

    @property
    def start_s(self) -> float:
        """Seconds from the start of the process, where the system tells it, to the first token of its first prompt."""
        return sum(self.stages.values())

    def share(self, point: Point) -> float | None:
        """The share of the bandwidth measured in this run that a decode step used; None where its bytes are unknown."""
        ceilings, used = self.measurement.ceilings, point.bytes_s
        return None if ceilings is None or used is None else used / ceilings.copy_bytes_s

    def to_json(self) -> dict[str, Any]:
        """Everything; null where something is not known."""
        found, reading, identity = self.measurement, self.reading, self.identity
        return {
            "schema": "kvlite.bench/1",
            "model": self.model,
            **identity.model_dump(include={"dtype", "quant", "fused"}),
            **reading.host.model_dump(include={"device", "kernels", "step"}),
            "device_name": self.device_name,
            "threads": self.threads,
            "policy": reading.counts.policy,
            "on_full": self.on_full,
            "kv_dtype": reading.counts.dtype,
            "slots": reading.capacity_tokens,
            "chunk": self.chunk,
            "budget_bytes": reading.counts.budget_bytes,
            "reserved_bytes": reading.counts.reserved_bytes,
            "weights_read_bytes": self.weights_read_bytes,
            "versions": dict(self.versions),
            "protocol": asdict(found.workload),
            "ceilings": None if found.ceilings is None else asdict(found.ceilings),
            "startup": {"stages_s": dict(self.stages), "total_s": self.start_s},
            "prompts": [{**asdict(prompt), "tokens_s": prompt.tokens_s} for prompt in found.prompts],
            "decoding": [self._point(point) for point in found.decoding],
            "drift": {"points": [self._point(point) for point in found.drift], "share": found.drift_share},
            "left_out": list(found.left_out),
            "memory": {
                "predicted_bytes": dict(self.predicted),
                "measured_bytes": dict(reading.terms),
                "peak_bytes": dict(reading.phases),
            },
        }

    def _point(self, point: Point) -> dict[str, Any]:
        rates = {"tokens_s": point.tokens_s, "bytes_s": point.bytes_s, "share_of_copy": self.share(point)}
        return {**asdict(point), **rates}
