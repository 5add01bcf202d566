"""The greedy answers of one file in batches of different sizes, in another order, through workers: are they the same.

    python benchmarks/same_answers.py FOLDER --lines 500 --out benchmarks/results/same-answers-cpu.json

FOLDER is a model; it computes in float32, and every row holds its whole line. Half of the lines share a beginning, and
their lengths differ. Ray is tried where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SHARED = "You answer in short and plain sentences, you never invent facts, and you stop when the question is answered. "
ASKED = ("What do you know about {}?", "Name one thing about {}.", "Write a sentence on {} for a child of ten years.")
THINGS = ("cats", "the sea", "bread", "old houses", "rain", "bicycles", "the moon", "gardens", "snow", "a river", "tea")
OPTIONS = ("--greedy", "--dtype", "float32", "--kv-dtype", "float32", "--report", "none", "--progress", "none")


def prompts(lines: int) -> list[dict[str, Any]]:
    """The lines, each different from the others."""
    return [
        {
            "id": f"p{number}",
            "prompt": f"{SHARED if number % 2 else ''}{ASKED[number % 3].format(THINGS[number % 11])} ({number})",
        }
        for number in range(lines)
    ]


def answers(
    model: str, lines: list[dict[str, Any]], tokens: int, more: tuple[str, ...]
) -> tuple[dict[str, str], float]:
    """The answer to each id, and the seconds that all took."""
    since = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        asked.write_text("".join(f"{json.dumps(one)}\n" for one in lines), encoding="utf-8")
        command = [sys.executable, "-m", "kvlite", "batch", str(asked), "-m", model, "-o", str(out), "-n", str(tokens)]
        subprocess.run([*command, *OPTIONS, *more], check=True)
        records = [json.loads(record) for record in out.read_text("utf-8").splitlines()]
    assert len(records) == len(lines)
    assert not any(record["kv"]["tokens_evicted"] for record in records)
    return {record["id"]: record["text"] for record in records}, time.monotonic() - since


def main() -> None:
    """Answer in each way, compare, write and print; the exit code is 1 where an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lines = prompts(asked.lines)
    shuffled = random.Random(14).sample(lines, len(lines))
    ways: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
        "alone": (lines, ("--batch-size", "1", "--no-prefix-cache")),
        "4 at once": (lines, ("--batch-size", "4")),
        "32 at once": (lines, ("--batch-size", "32")),
        "shuffled, 32 at once": (shuffled, ("--batch-size", "32")),
        "two processes": (lines, ("--devices", "cpu,cpu")),
    }
    if find_spec("ray") is not None:
        ways["two Ray actors"] = (lines, ("--ray", "local", "--workers", "2"))
    found: dict[str, Any] = {"model": Path(asked.model).name, "lines": asked.lines, "max_tokens": asked.max_tokens}
    found |= {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0], "ways": {}}
    alone: dict[str, str] = {}
    for name, (of, more) in ways.items():
        texts, seconds = answers(asked.model, of, asked.max_tokens, more)
        alone = alone or texts
        differ = sum(texts[key] != alone[key] for key in alone)
        found["ways"][name] = {"differ_from_alone": differ, "seconds": round(seconds, 1)}
        print(name, found["ways"][name], file=sys.stderr, flush=True)
    found["different_answers"] = len(set(alone.values()))
    written = json.dumps(found, indent=1)
    if asked.out is not None:
        asked.out.write_text(f"{written}\n", encoding="utf-8")
    print(written)
    sys.exit(any(way["differ_from_alone"] for way in found["ways"].values()))


if __name__ == "__main__":
    main()
