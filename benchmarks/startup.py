"""From a cold process to the first token, by stage: medians of several processes.

    python benchmarks/startup.py --runs 5 --out benchmarks/results/startup-cpu.json

The stages are those `kvlite bench` reports of itself; beside them stands `kvlite run MODEL hi` as a whole, in wall time
and in processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from kvlite.record.measure import versions

COMMAND = (sys.executable, "-m", "kvlite")


def staged(model: str) -> dict[str, float]:
    """Seconds by stage of one process."""
    asked = [*COMMAND, "bench", model, "--prompt", "", "--context", "", "--drift", "", "--json", "--quiet"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    stages: dict[str, float] = json.loads(done.stdout)["startup"]["stages_s"]
    return stages


def whole(model: str) -> dict[str, float]:
    """Seconds of one `kvlite run MODEL hi`, on the clock and of the processor."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([*COMMAND, "run", model, "hi", "--report", "none"], capture_output=True, check=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return {"wall": time.perf_counter() - start, "processor": spent}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    """Measure in turns, print, and write the file that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    both = [(staged(options.model), whole(options.model)) for _ in range(options.runs + 1)][1:]  # the first reads files
    stages, run = medians([one for one, _ in both]), medians([one for _, one in both])
    for name, seconds in (*stages.items(), ("kvlite run, wall", run["wall"]), ("kvlite run, cpu", run["processor"])):
        print(f"{name:30} {seconds:7.3f} s")
    if options.out is not None:
        told = {
            "command": ["python", *sys.argv],
            "device": platform.processor() or platform.machine(),
            "versions": versions(),
            "model": options.model,
            "runs": options.runs,
            "stages_s": stages,
            "run_s": run,
        }
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
