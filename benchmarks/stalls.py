"""Answers being written while long prompts come: the time between two of their tokens, and the whole run's.

    python benchmarks/stalls.py FOLDER --out benchmarks/results/stalls-smollm2-cpu.json

A quarter of the rows decode; then prompts of 400 to 1,000 tokens come to all others. Rows that decode share the passes
of prompts, or take turns with them, in rounds. Processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from kvlite.engine.engine import Engine
from kvlite.engine.feeding import Feeder
from kvlite.engine.request import Request, Token
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel, Told
from kvlite.options import ModelOptions


def requests(rows: int, engine: Engine) -> Iterator[Request | None]:
    """Short prompts for a quarter of the rows, and once they answer, long ones for the others."""
    chance, first = random.Random(0), rows // 4

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(chance.randrange(100, 40_000) for _ in range(length))

    for number in range(first):
        yield Request(f"short {number}", prompt(20), max_tokens=80)
    while sum(len(engine.rows.said(row)) > 20 for row in range(first)) < first:
        yield None
    for number in range(rows - first):
        yield Request(f"long {number}", prompt(chance.randint(400, 1000)), max_tokens=40)


def measure(engine: Engine) -> dict[str, Any]:
    """Run once; the gaps are those of the answers that were there before the prompts."""
    start, last = time.process_time(), dict[str, float]()
    gaps, tokens, firsts = list[float](), 0, list[float]()
    for event in engine.run(requests(len(engine.rows), engine)):
        if isinstance(event, Token):
            now = time.process_time() - start
            tokens += 1
            if event.request_id not in last:
                firsts.append(now)
            elif event.request_id.startswith("short"):
                gaps.append(now - last[event.request_id])
            last[event.request_id] = now
    seconds = time.process_time() - start
    return {
        "s": round(seconds, 2),
        "tokens": tokens,
        "longest_gap_s": round(max(gaps), 3),
        "mean_first_token_s": round(sum(firsts) / len(firsts), 2),
    }


def main() -> None:
    """Measure both ways in turns, print and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = TextModel.load(RunSpec.of(ModelOptions(model=options.folder, device="cpu", kv_budget="1GB")), Told())
    engine = model.allocate(options.rows, 1100, options.rows).engine
    shared = Feeder.may_share
    ways: dict[str, Any] = {"passes shared": shared, "in turns": lambda feeder, row, count: False}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            Feeder.may_share = way  # type: ignore[method-assign]
            found[name].append(measure(engine))
            print(name, found[name][-1], flush=True)
    record = {
        "rows": options.rows, "slots": engine.plan.slots, "stored": engine.cache.stored.name,
        "processor": platform.processor() or platform.machine(), "load": os.getloadavg(),
        "ways": {
            name: {"s": median(one["s"] for one in rounds), "rounds": rounds} for name, rounds in found.items()
        },
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
