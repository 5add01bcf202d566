"""`kvlite bench`: how fast a model runs here, held against what the device can do."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import only, without
from kvlite.errors import UsageError
from kvlite.flags import option
from kvlite.options import ModelOptions, OutputOptions

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.speed.report import Report, Workload

_COUNT = re.compile(r"(\d{1,12})([kM]?)", re.ASCII)
_TIMES = {"": 1, "k": 1_000, "M": 1_000_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The numbers of tokens to measure with."""

    prompt: str = option("128,1k", metavar="N,N", help="Lengths of prompts, fed to the first token.")
    context: str = option("128,1k,8k", metavar="N,N", help="Decode after this many tokens, such as 500,8k.")
    drift: str = option(
        "1k,10k,100k,1M",
        metavar="N,N",
        help="Decode with all slots full after this many tokens: the state is put there, not fed.",
    )
    steps: int = option(64, metavar="N", min=1, help="Decode steps of each timing.")
    rounds: int = option(5, metavar="N", min=1, help="Times everything is repeated.")
    seed: int = option(0, metavar="N", min=0, help="Same seed, same random tokens.")

    def workload(self) -> Workload:
        """Read the lists of counts. Raises UsageError on what is no count."""
        from kvlite.speed.report import Workload

        return Workload(
            prompts=_counts("--prompt", self.prompt),
            contexts=_counts("--context", self.context),
            drift=_counts("--drift", self.drift),
            steps=self.steps,
            rounds=self.rounds,
            seed=self.seed,
        )


def bench(
    given: BenchOptions,
    options: Annotated[ModelOptions, without("think", "kv_per_seq", "pin_system", "speculate")],
    output: Annotated[OutputOptions, only("report")],
    call: Invocation,
) -> None:
    """Measure start-up, prompts and decoding on random tokens, and the share of this device's bandwidth they use."""
    from kvlite.llm import LLM
    from kvlite.llm.spec import RunSpec
    from kvlite.llm.text_model import TextModel, import_engine
    from kvlite.memory.host import process_age_s
    from kvlite.speed.report import bench_report

    age_s, workload, out = process_age_s(), given.workload(), call.console
    with call.start_recorder("bench", output.report) as recorder, out.progress() as progress:
        progress("loading")
        spec = replace(RunSpec.of(call.with_model(options)), speculate="off")  # steps are timed one by one
        start = time.perf_counter()
        import_engine()
        from kvlite.speed.measurement import Measurement

        imported = time.perf_counter()
        llm = LLM(TextModel.load(spec, out))
        opened = time.perf_counter()
        llm.record(recorder, call.sources["kv_budget"])
        measurement = Measurement(llm.engine, workload)
        for doing in measurement.run():
            progress(doing)
            recorder.sample()
    loading = llm.model.loaded.stages
    stages = {
        **({} if age_s is None else {"interpreter and command line": age_s}),
        "imports": imported - start,
        **loading,
        "files, plan and cache": max(0.0, opened - imported - sum(loading.values())),
    }
    report = bench_report(llm, measurement, stages)
    if out.as_json:
        out.json(report, indent=2)
    else:
        _show(report, out)
        for reason in measurement.left_out:
            out.note(f"left out: {reason}")


def _show(report: Report, out: Console) -> None:
    from kvlite.speed.report import bench_tables, headlines

    for line in headlines(report):
        out.line(line)
    for table in bench_tables(report):
        out.line()
        out.show(table)


def _counts(flag: str, value: str) -> tuple[int, ...]:
    """The counts of a list with commas, ascending; none in an empty list. Raises UsageError on what is no count."""
    found = []
    for item in value.split(",") if value.strip() else ():
        match = _COUNT.fullmatch(item.strip())
        count = int(match[1]) * _TIMES[match[2]] if match else 0
        if not 1 <= count < 2**31:
            raise UsageError(f"{flag} {value}: {item.strip()!r} is no count of tokens; give for example 500, 8k or 1M")
        found.append(count)
    return tuple(sorted(set(found)))
