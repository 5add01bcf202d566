"""From a cold process to the first token, by stage: medians of several processes.

    python benchmarks/startup.py --runs 5 --out benchmarks/results/startup-cpu.json

The stages are those `kvlite bench` reports of itself; beside them stands `kvlite run MODEL hi` as a whole, in wall time
and in processor time, which a busy machine disturbs less. Of a model in a folder, transformers stands beside it, and
ratios to it are printed: the first round is left out, so that kvlite has seen the model before.
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

THEIRS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
"""
ANSWER = "model.generate(torch.tensor([tokenizer.encode('hi')]), max_new_tokens=1)"


def staged(model: str) -> dict[str, float]:
    """Seconds by stage of one process."""
    asked = [*COMMAND, "bench", model, "--prompt", "", "--context", "", "--drift", "", "--json", "--quiet"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    stages: dict[str, float] = json.loads(done.stdout)["startup"]["stages_s"]
    return stages


def whole(*command: str) -> dict[str, float]:
    """Seconds of one process, on the clock and of the processor, and its peak of memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    peak = usage.ru_maxrss / (1000 if sys.platform == "linux" else 1e6)
    return {"wall": time.perf_counter() - start, "processor": usage.ru_utime + usage.ru_stime, "peak_mb": peak}


def ours(model: str, *options: str) -> dict[str, float]:
    """One `kvlite run MODEL hi` to its first token."""
    return whole(*COMMAND, "run", model, "hi", "--max-tokens", "1", "--report", "none", *options)


def theirs(folder: str, *, answers: bool) -> dict[str, float]:
    """torch and transformers imported and the weights read, and a token of `generate` where it answers."""
    return whole(sys.executable, "-c", THEIRS + (ANSWER if answers else ""), folder)


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def beside(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Peaks and processor time of kvlite over those of transformers."""
    loaded, token = found["transformers, loaded"], found["transformers, a token"]
    return {
        name: {
            "peak": took["peak_mb"] / token["peak_mb"],
            "processor": took["processor"] / token["processor"],
            "processor_loaded": took["processor"] / loaded["processor"],
        }
        for name, took in found.items()
        if name.startswith("kvlite")
    }


def main() -> None:
    """Measure in turns, print, and write the file that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    is_folder = Path(options.model).is_dir()
    rounds = []
    for _ in range(options.runs + 1):
        once = {"stages": staged(options.model), "kvlite run": ours(options.model)}
        if is_folder:
            once["kvlite run --4bit"] = ours(options.model, "--4bit")
            once["transformers, loaded"] = theirs(options.model, answers=False)
            once["transformers, a token"] = theirs(options.model, answers=True)
        rounds.append(once)
    found = {name: medians([once[name] for once in rounds[1:]]) for name in rounds[0]}  # the first reads files
    stages = found.pop("stages")
    for name, seconds in stages.items():
        print(f"{name:30} {seconds:7.3f} s")
    for name, took in found.items():
        print(f"{name:30} {took['wall']:7.3f} s, {took['processor']:.3f} s of processor, peak {took['peak_mb']:.0f} MB")
    ratios = beside(found) if is_folder else {}
    for name, ratio in ratios.items():
        print(f"{name:30} {ratio['peak']:.2f} of its peak, {ratio['processor']:.2f} of its processor time to a token, "
              f"{ratio['processor_loaded']:.2f} of that to its weights")  # fmt: skip
    if options.out is not None:
        told = {
            "command": ["python", *sys.argv],
            "device": platform.processor() or platform.machine(),
            "versions": versions(),
            "model": Path(options.model).name,
            "runs": options.runs,
            "stages_s": stages,
            "load": os.getloadavg(),
            "whole": found,
            "beside_transformers": ratios,
        }
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
