"""One batch that is killed again and again: is each id there once, and is each greedy answer that of a run left alone.

    python benchmarks/kills.py --kills 100 --lines 2000 --out benchmarks/results/kills-demo-cpu.json

The lines are of two lengths, which get rows of two sizes; the long ones share a beginning; every eighth answers by a
JSON Schema. SIGKILL comes while the model loads, or after a random number of records. Every fifth start runs two
workers, and the kill takes one of them first, or all at once. Needs the extra json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

SHARED = "The old house by the sea has a green door, two windows, a red roof and a garden with apple trees. " * 3
THINGS = ("cats", "the sea", "bread", "an old house", "rain", "a red bicycle", "the moon", "my garden")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bob", "Eve"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
OPTIONS = ("--greedy", "--dtype", "float32", "--kv-dtype", "float32", "--kv-budget", "4MB", "--report", "none")


def line(number: int) -> dict[str, Any]:
    """A line of OpenAI's batch form: long and with the shared beginning, or short."""
    is_long, thing = number % 4 == 0, THINGS[number % len(THINGS)]
    text = f"{SHARED if is_long else ''}Tell me about {thing} number {number}."
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 64 if is_long else 12}
    if number % 8 == 1:
        form = {"name": "person", "strict": True, "schema": SCHEMA}
        body |= {"max_tokens": 40, "response_format": {"type": "json_schema", "json_schema": form}}
    return {"custom_id": f"p{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def start(model: str, folder: Path, out: str, *more: str) -> subprocess.Popen[bytes]:
    """The batch, in a process of its own."""
    command = (sys.executable, "-m", "kvlite", "batch", "in.jsonl", "-m", model, "-o", out, "--progress", "none")
    log = (folder / "log").open("ab")
    return subprocess.Popen([*command, *OPTIONS, *more], cwd=folder, stdout=log, stderr=log)


def count(path: Path) -> int:
    """The records there are."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_once(process: subprocess.Popen[bytes], out: Path, draw: random.Random, *, has_workers: bool) -> str:
    """Kill the batch, or one of its workers, at a random moment; says what was done."""
    begun = count(out)
    records, ends_s = draw.choice([0, 0, 1, 3, 10, 20, 30]), time.monotonic() + 120
    if records == 0:
        ends_s = time.monotonic() + draw.uniform(0.1, 6)
    while process.poll() is None and time.monotonic() < ends_s and (records == 0 or count(out) < begun + records):
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.03))
    if process.poll() is not None:
        return "had ended"
    found = psutil.Process(process.pid).children(recursive=True) if has_workers else []
    workers = [one for one in found if "spawn_main" in " ".join(one.cmdline())]
    if workers and draw.random() < 0.5:
        draw.choice(workers).kill()
        time.sleep(draw.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        return "a worker, then the batch"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return "the batch with workers" if has_workers else "the batch"


def answers(path: Path) -> tuple[Counter[str], dict[str, str], list[dict[str, Any]]]:
    """How often each id is there, each answer, and the counts of each."""
    records = [json.loads(record) for record in path.read_text("utf-8").splitlines()]
    bodies = {record["custom_id"]: record["response"]["body"] for record in records}
    texts = {key: body["choices"][0]["message"]["content"] for key, body in bodies.items()}
    return Counter(record["custom_id"] for record in records), texts, [*bodies.values()]


def main() -> None:
    """Run both, compare them, write and print what came of it; the exit code is 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    draw, since = random.Random(asked.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = "".join(f"{json.dumps(line(number))}\n" for number in range(asked.lines))
        (folder / "in.jsonl").write_text(lines, encoding="utf-8")
        assert start(asked.model, folder, "whole.jsonl").wait() == 0, (folder / "log").read_text()
        kills: Counter[str] = Counter()
        at: list[int] = []
        out = folder / "out.jsonl"
        while sum(kills.values()) - kills["had ended"] < asked.kills and count(out) < asked.lines:
            has_workers = sum(kills.values()) % 5 == 4
            process = start(asked.model, folder, out.name, *(("--devices", "cpu,cpu") if has_workers else ()))
            kills[kill_once(process, out, draw, has_workers=has_workers)] += 1
            at.append(count(out))
            time.sleep(0.2)  # workers notice that the batch is gone
        assert start(asked.model, folder, out.name).wait() == 0, (folder / "log").read_text()
        ids, texts, bodies = answers(out)
        _, expected, _ = answers(folder / "whole.jsonl")
    found = {
        "model": asked.model,
        "lines": asked.lines,
        "kills": dict(kills),
        "records_at_each_kill": at,
        "ids": len(ids),
        "ids_twice": sum(number > 1 for number in ids.values()),
        "answers_that_differ": sum(texts[key] != expected[key] for key in expected),
        "different_answers": len(set(expected.values())),
        "cached_tokens": sum(body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in bodies),
        "row_bytes": dict(Counter(body["kvlite"]["kv"]["reserved_bytes"] for body in bodies).most_common(4)),
        "seconds": round(time.monotonic() - since),
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
    }
    written = json.dumps(found, indent=1)
    if asked.out is not None:
        asked.out.write_text(f"{written}\n", encoding="utf-8")
    print(written)
    sys.exit(len(ids) != asked.lines or found["ids_twice"] != 0 or found["answers_that_differ"] != 0)


if __name__ == "__main__":
    main()
