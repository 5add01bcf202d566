"""A measurement as one value with what it was measured on, and as JSON. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvlite.llm import LLM
    from kvlite.speed.decoding import Point
    from kvlite.speed.measurement import Measurement

SCHEMA = "kvlite.bench/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was measured: the model as loaded, the cache as reserved, the device by name, and the versions.

    `step` says how decode steps ran: `captured`, or `eager` and why where capturing was asked for.
    """

    model: str
    dtype: str
    quant: str
    fused: tuple[str, ...]
    device: str
    device_name: str
    threads: int
    kernels: str
    step: str
    policy: str
    on_full: str
    kv_dtype: str
    slots: int
    chunk: int
    budget_bytes: int
    reserved_bytes: int
    weights_read_bytes: int | None
    versions: Mapping[str, str]

    @classmethod
    def of(cls, llm: LLM) -> Subject:
        """Describe an open model."""
        import torch

        from kvlite.record.measure import installed_versions
        from kvlite.speed.ceilings import device_name
        from kvlite.speed.roofline import weights_read_bytes

        loaded, engine, plan = llm.model.loaded, llm.engine, llm.plan
        return cls(
            model=llm.model.name,
            dtype=loaded.dtype_name,
            quant=loaded.quant,
            fused=loaded.fused,
            device=loaded.device.type,
            device_name=device_name(loaded.device),
            threads=torch.get_num_threads(),
            kernels=engine.cache.kernels.name,
            step=str(engine.step),
            policy=engine.policy.name,
            on_full=engine.on_full,
            kv_dtype=engine.cache.stored.name,
            slots=plan.slots,
            chunk=plan.chunk,
            budget_bytes=plan.budget_bytes,
            reserved_bytes=plan.reserved_bytes,
            weights_read_bytes=weights_read_bytes(loaded),
            versions=installed_versions(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """`stages` are seconds of the start-up in order, `predicted` and `measured` bytes by term, `peaks` by phase."""

    subject: Subject
    stages: Mapping[str, float]
    measurement: Measurement
    predicted: Mapping[str, int]
    measured: Mapping[str, int]
    peaks: Mapping[str, int]

    @property
    def start_s(self) -> float:
        """Seconds from the start of the process, where the system tells it, to the first token of its first prompt."""
        return sum(self.stages.values())

    def share(self, point: Point) -> float | None:
        """The share of the bandwidth measured in this run that a decode step used; None where its bytes are unknown."""
        ceilings, used = self.measurement.ceilings, point.bytes_s
        return None if ceilings is None or used is None else used / ceilings.copy_bytes_s

    def to_json(self) -> dict[str, Any]:
        """Everything; what is not known is null."""
        found = self.measurement
        subject = asdict(self.subject)
        return {
            "schema": SCHEMA,
            **subject,
            "protocol": asdict(found.protocol),
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
                "measured_bytes": dict(self.measured),
                "peak_bytes": dict(self.peaks),
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
