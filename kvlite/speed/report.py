"""The lengths to measure, and the report of a bench: as JSON, and from that for reading. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvlite.memory.format import human_bytes
from kvlite.record.table import UNKNOWN, Table

if TYPE_CHECKING:
    from kvlite.llm import LLM
    from kvlite.speed.measurement import Measurement

Report = Mapping[str, Any]
"""All that `kvlite bench --json` writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts of these lengths, decoding after these many tokens, and decoding with all slots full.

    Each timing takes `steps` decode steps and is repeated in `rounds` rounds; all counts are at least 1, and no list
    has one twice.
    """

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    drift: tuple[int, ...]
    steps: int = 64
    rounds: int = 5
    seed: int = 0


def bench_report(llm: LLM, found: Measurement, stages: Mapping[str, float]) -> Report:
    """Everything; None where something is not known. `stages` are seconds of the start-up up to the first token."""
    import torch

    from kvlite.engine.memory_report import EngineMemory
    from kvlite.record.measure import versions
    from kvlite.speed.roofline import device_name

    reading = EngineMemory(llm.engine).read()
    stages = {**stages, "first token": found.cold_first_token_s}
    return {
        "schema": "kvlite.bench/1",
        "model": llm.model.name,
        **llm.model.identity().model_dump(include={"dtype", "quant", "fused"}),
        **reading.host.model_dump(include={"device", "kernels", "step"}),
        "device_name": device_name(llm.model.loaded.device),
        "threads": torch.get_num_threads(),
        "policy": reading.counts.policy,
        "on_full": llm.engine.rows.on_full,
        "kv_dtype": reading.counts.dtype,
        "slots": reading.capacity_tokens,
        "chunk": llm.plan.chunk,
        "budget_bytes": reading.counts.budget_bytes,
        "reserved_bytes": reading.counts.reserved_bytes,
        "weights_read_bytes": found.weights_read_bytes,
        "versions": versions(),
        "protocol": asdict(found.workload),
        "ceilings": asdict(found.ceilings),
        "startup": {"stages_s": stages, "total_s": sum(stages.values())},
        "prompts": [asdict(prompt) for prompt in found.prompts],
        "decoding": [asdict(point) for point in found.decoding],
        "drift": {"points": [asdict(point) for point in found.drift], "share": found.drift_share},
        "left_out": found.left_out,
        "memory": {
            "predicted_bytes": llm.predicted(),
            "measured_bytes": dict(reading.terms),
            "peak_bytes": dict(reading.phases),
        },
    }


def headlines(report: Report) -> tuple[str, str]:
    """The model, its cache and the device; and the most that the device did in this run."""
    versions = " ".join(f"{name} {report['versions'].get(name, '?')}" for name in ("kvlite", "torch", "transformers"))
    weights = report["dtype"] if report["quant"] == "none" else report["quant"]
    cache = f"KV {human_bytes(report['reserved_bytes'])} = {report['slots']:,} tok · policy {report['policy']}"
    threads = f", {report['threads']} threads" if report["device"] == "cpu" else ""
    steps = (report["step"] or "").partition(":")[0]
    place = f"{report['device_name']}{threads} ({report['kernels']}, {steps} steps)"
    most = report["ceilings"]
    flops = f"{most['flop_s'] / 1e12:.3g} TFLOP/s in {most['dtype']}"
    return (
        f"{report['model']} · {weights} · {cache} · {place} · {versions}",
        f"this device copies {_rate(most['copy_bytes_s'])} and multiplies at {flops}, measured in this run",
    )


def bench_tables(report: Report) -> list[Table]:
    """Everything below the headlines; a table with nothing to say is left out."""
    startup = {**report["startup"]["stages_s"], "together": report["startup"]["total_s"]}
    start = Table(("START-UP", "TOOK"), tuple((name, f"{seconds:.3f} s") for name, seconds in startup.items()))
    prompts = tuple(
        (f"{each['tokens']:,} tok", f"{each['tokens_s']:,.0f}", _ms(spread["median_s"]), _between(spread))
        for each in report["prompts"]
        for spread in [each["first_token"]]
    )
    tables = (
        start,
        Table(("PROMPT", "TOK/S", "FIRST TOKEN", "ROUNDS BETWEEN"), prompts),
        _points("DECODING AFTER", report["decoding"]),
        _points("ALL SLOTS FULL, AFTER", report["drift"]["points"], report["drift"]["share"]),
        _memory(report),
    )
    return [table for table in tables if table.rows]


def _points(title: str, points: Sequence[Report], drift: float | None = None) -> Table:
    columns = (title, "SLOTS LIVE", "TOK/S", "A STEP", "99 %", "ROUNDS BETWEEN", "READS", "USES", "OF COPY")
    rows = tuple(
        (
            f"{point['tokens_seen']:,} tok",
            f"{point['slots_live']:,}",
            f"{point['tokens_s']:,.1f}",
            _ms(point["step"]["median_s"]),
            _ms(point["step"]["p99_s"]),
            _between(point["step"]),
            UNKNOWN if point["read_bytes"] is None else human_bytes(point["read_bytes"]),
            UNKNOWN if point["bytes_s"] is None else _rate(point["bytes_s"]),
            UNKNOWN if point["share_of_copy"] is None else f"{point['share_of_copy']:.1%}",
        )
        for point in points
    )
    note = ""
    if drift is not None:
        first, last = points[0]["tokens_seen"], points[-1]["tokens_seen"]
        note = f"drift from {first:,} to {last:,} tokens: {drift:+.1%} per token"
    return Table(columns, rows, note)


def _memory(report: Report) -> Table:
    planned, measured = report["memory"]["predicted_bytes"], report["memory"]["measured_bytes"]
    rows = tuple((name, _bytes(planned.get(name)), _bytes(measured.get(name))) for name in {**planned, **measured})
    held = "resident set" if report["device"] == "cpu" else "allocated on the device"
    said = ", ".join(f"{phase} {human_bytes(peak)}" for phase, peak in report["memory"]["peak_bytes"].items())
    return Table(("MEMORY", "PLANNED", "MEASURED"), rows, f"peaks ({held}): {said}")


def _bytes(count: int | None) -> str:
    return UNKNOWN if count is None else f"{human_bytes(count)} ({count:,} B)"


def _between(spread: Report) -> str:
    return f"{_ms(spread['low_s'])} - {_ms(spread['high_s'])}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"


def _rate(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:,.2f} GB/s"
