"""The work of `kvlite bench`: opens the model, measures, writes tables or JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.llm import LLM
    from kvlite.options import ModelOptions
    from kvlite.speed.measurement import Measurement
    from kvlite.speed.protocol import Protocol
    from kvlite.speed.report import BenchReport


def bench_model(protocol: Protocol, options: ModelOptions, out: Console) -> None:
    """Load the model, measure, and write the result to stdout. Raises the KvliteError that says what is wrong."""
    from kvlite.memory.host import process_age_s

    age_s, start = process_age_s(), time.perf_counter()
    with out.progress() as progress:
        progress.update("loading")
        llm, measurement, imports_s = _open(protocol, options, out)
        opened_s = time.perf_counter() - start - imports_s
        for doing in measurement.run():
            progress.update(doing)
    stages = _stages(age_s, imports_s, opened_s, llm, measurement)
    _write(_report(llm, measurement, stages), out)


def _open(protocol: Protocol, options: ModelOptions, out: Console) -> tuple[LLM, Measurement, float]:
    """The open model, what will measure it, and the seconds the imports took."""
    from kvlite.llm import LLM
    from kvlite.llm.fast_import import import_engine
    from kvlite.llm.spec import RunSpec
    from kvlite.llm.text_model import TextModel

    spec = RunSpec.of(options)
    start = time.perf_counter()
    import_engine()
    from kvlite.speed.measurement import Measurement

    imports_s = time.perf_counter() - start
    llm = LLM(TextModel.load(spec, out))
    return llm, Measurement(llm.engine, protocol), imports_s


def _stages(
    age_s: float | None, imports_s: float, opened_s: float, llm: LLM, measurement: Measurement
) -> dict[str, float]:
    """Seconds from the process's start to the first token by stage; the first is missing where nothing tells it."""
    assert measurement.cold_first_token_s is not None
    loading = llm.model.loaded.stages
    before = {} if age_s is None else {"interpreter and command line": age_s}
    return {
        **before,
        "imports": imports_s,
        **loading,
        "files, plan and cache": max(0.0, opened_s - sum(loading.values())),
        "first token": measurement.cold_first_token_s,
    }


def _report(llm: LLM, measurement: Measurement, stages: dict[str, float]) -> BenchReport:
    from kvlite.engine.memory_report import measured_terms
    from kvlite.speed.report import BenchReport, Subject

    return BenchReport(
        subject=Subject.of(llm),
        stages=stages,
        measurement=measurement,
        predicted=llm.predicted(),
        measured=measured_terms(llm.engine),
        peaks=llm.engine.peak_memory.peaks,
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
