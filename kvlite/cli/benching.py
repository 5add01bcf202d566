"""What `kvlite bench` does once it knows what is asked: opens the model, measures, writes tables or JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlite.cli.opening import Opened
    from kvlite.console import Console
    from kvlite.options import ModelOptions
    from kvlite.speed.measurement import Measurement
    from kvlite.speed.report import BenchReport, Subject


@dataclass(frozen=True, slots=True)
class Asked:
    """What the flags say: tokens of prompts, tokens seen before decoding, steps and rounds of each timing."""

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    drift: tuple[int, ...]
    steps: int
    rounds: int
    seed: int


def bench_model(asked: Asked, options: ModelOptions, out: Console) -> None:
    """Load the model, measure, and write the result to stdout. Raises the KvliteError that says what is wrong."""
    from kvlite.memory.host import process_age_s

    age_s, start = process_age_s(), time.perf_counter()
    with out.progress() as progress:
        progress.update("loading")
        opened, measurement, imports_s = _open(asked, options, out)
        opened_s = time.perf_counter() - start - imports_s
        for doing in measurement.run():
            progress.update(doing)
    stages = _stages(age_s, imports_s, opened_s, opened, measurement)
    _write(_report(opened, measurement, stages), out)


def _open(asked: Asked, options: ModelOptions, out: Console) -> tuple[Opened, Measurement, float]:
    """The open model, what will measure it, and the seconds the imports took."""
    start = time.perf_counter()
    from kvlite.cli.heavy import load_engine
    from kvlite.cli.opening import open_model

    load_engine()
    from kvlite.speed.measurement import Measurement, Protocol

    imports_s = time.perf_counter() - start
    protocol = Protocol(
        prompts=asked.prompts,
        contexts=asked.contexts,
        drift=asked.drift,
        steps=asked.steps,
        rounds=asked.rounds,
        seed=asked.seed,
    )
    opened = open_model(options, out)
    return opened, Measurement(opened.engine, protocol), imports_s


def _stages(
    age_s: float | None, imports_s: float, opened_s: float, opened: Opened, measurement: Measurement
) -> dict[str, float]:
    """Seconds from the process's start to the first token by stage; the first is missing where nothing tells it."""
    assert measurement.cold_first_token_s is not None
    loading = opened.loaded.stages
    before = {} if age_s is None else {"interpreter and command line": age_s}
    return {
        **before,
        "imports": imports_s,
        **loading,
        "files, plan and cache": max(0.0, opened_s - sum(loading.values())),
        "first token": measurement.cold_first_token_s,
    }


def _report(opened: Opened, measurement: Measurement, stages: dict[str, float]) -> BenchReport:
    from kvlite.engine.memory_report import measured_terms
    from kvlite.speed.report import BenchReport

    return BenchReport(
        subject=_subject(opened),
        stages=stages,
        measurement=measurement,
        predicted=opened.predicted(),
        measured=measured_terms(opened.engine),
        peaks=opened.engine.peak_memory.peaks,
    )


def _subject(opened: Opened) -> Subject:
    import torch

    from kvlite.record.measure import installed_versions
    from kvlite.speed.ceilings import device_name
    from kvlite.speed.report import Subject
    from kvlite.speed.roofline import weights_read_bytes

    loaded, engine, plan = opened.loaded, opened.engine, opened.plan
    return Subject(
        model=opened.name,
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


def _write(report: BenchReport, out: Console) -> None:
    from kvlite.speed.view import bench_tables, ceilings_line, headline

    if out.as_json:
        out.json(report.to_json(), indent=2)
        return
    out.line(headline(report))
    out.line(ceilings_line(report))
    for table in bench_tables(report):
        out.line()
        out.show(table)
    for reason in report.measurement.left_out:
        out.note(f"left out: {reason}")
