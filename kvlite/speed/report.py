"""A measurement as one value with the run it was made in, and as JSON. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvlite.record.reading import Reading
from kvlite.record.schema import ModelIdentity

if TYPE_CHECKING:
    from kvlite.speed.decoding import Point
    from kvlite.speed.measurement import Measurement

SCHEMA = "kvlite.bench/1"


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
            "schema": SCHEMA,
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
            "prompts": [
                {"tokens": prompt.tokens, "tokens_s": prompt.tokens_s, "first_token": asdict(prompt.first_token)}
                for prompt in found.prompts
            ],
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
        return {
            "tokens_seen": point.tokens_seen,
            "slots_live": point.slots_live,
            "tokens_s": point.tokens_s,
            "step": asdict(point.step),
            "read_bytes": point.read_bytes,
            "bytes_s": point.bytes_s,
            "share_of_copy": self.share(point),
        }
