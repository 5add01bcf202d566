"""Kill one batch again and again at random moments, resume it each time, and compare with a run that nobody touched.

    python benchmarks/killed.py --kills 100 --out benchmarks/results/killed-cpu.json

The built-in model answers 2,400 greedy lines in float32: half of them share a beginning, a quarter follow a JSON
schema, and a quarter are so long that they need larger rows. Each run is a process of its own, forked from one that
has imported the package, and is ended by SIGKILL: some while it starts, the others once it has written a random
number of records. At the end every id must have one record, and every answer must be that of the run that was not
killed. Needs the extra json. Words behind `--` go to every run: with `-- --devices cpu,cpu`, half of the runs lose one
of their workers first, and go on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SHARED = "You are a helpful assistant who answers briefly, and who always says hello first. "
LONG = "The dog ran over the hill and the cat slept in the sun. " * 12
EARLY_S = 1.0  # of a run that is killed while it starts
AT_START = 0.2  # of the kills
FLAGS = ["-m", "demo", "--greedy", "--dtype", "float32", "--kv-dtype", "float32", "--kv-budget", "3MB"]
QUIET = ["--progress", "none", "--report", "none"]


def line(number: int) -> dict[str, Any]:
    """A line: of every four two with a shared beginning, one in a form, one that is long."""
    kind = number % 4
    asked: dict[str, Any] = {"id": f"r{number}", "prompt": f"Hello number {number}! What is your name?"}
    if kind in (0, 2):
        return {**asked, "system": SHARED, "max_tokens": 16}
    if kind == 1:
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
        return {**asked, "response_format": form, "max_tokens": 40}
    return {**asked, "prompt": f"{LONG} {number}. What did the dog do?", "max_tokens": 8}


class Batch:
    """One input and output, and the processes that write it."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.output = folder / "out.jsonl"
        self._words = ["batch", str(folder.parent / "in.jsonl"), "-o", str(self.output), *FLAGS, *QUIET, *words]
        self._log = folder / "log.txt"
        self.workers_killed = 0

    def start(self) -> int:
        """Start a run in a process group of its own; returns the process id."""
        child = os.fork()
        if child:
            return child
        os.setsid()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from kvlite.cli import main

        sys.argv = ["kvlite", *self._words]
        os._exit(main(self._words))

    def kill_a_worker(self, child: int, chance: random.Random) -> bool:
        """Kill one of the workers that a run has; False where it has none."""
        children = psutil.Process(child).children()
        workers = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
        if workers:
            chance.choice(workers).kill()
            self.workers_killed += 1
        return bool(workers)

    def count(self) -> int:
        """Count the whole records there are."""
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def records(self) -> dict[str, dict[str, Any]]:
        """The records by id. Ends the program where one is there twice."""
        read = [json.loads(record) for record in self.output.read_text().splitlines()]
        twice = [key for key, times in Counter(record["id"] for record in read).items() if times > 1]
        if twice:
            sys.exit(f"these ids have several records: {twice[:10]}")
        return {record["id"]: record for record in read}


def wait(child: int) -> int:
    """Wait for a run to end; returns its exit code, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(batch: Batch, chance: random.Random, most: int) -> str:
    """Start a run and kill it `most` records later or sooner; returns where it was, or `done` where it had ended."""
    before = batch.count()
    is_early = chance.random() < AT_START
    wanted = before + chance.randint(1, most)
    worker_at = before + chance.randint(0, most // 2) if chance.random() < 0.5 else sys.maxsize
    ends_at = time.monotonic() + chance.uniform(0, EARLY_S)
    child = batch.start()
    while not (time.monotonic() >= ends_at or batch.count() > before if is_early else batch.count() >= wanted):
        if batch.count() >= worker_at and batch.kill_a_worker(child, chance):
            worker_at = sys.maxsize
        if os.waitpid(child, os.WNOHANG)[0]:
            return "done"
        time.sleep(chance.uniform(0, 0.004))
    os.killpg(child, signal.SIGKILL)
    wait(child)
    data = batch.output.read_bytes() if batch.output.exists() else b""
    return "started" if batch.count() == before else "torn" if data and not data.endswith(b"\n") else "whole"


def compared(killed: dict[str, dict[str, Any]], whole: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Counts of records that are missing, failed, differ or are no JSON though they should be."""
    count = Counter(dict.fromkeys(("missing", "failed", "different", "not_json"), 0))
    for key, expected in whole.items():
        record = killed.get(key)
        if record is None:
            count["missing"] += 1
            continue
        count["failed"] += record["error"] is not None
        count["different"] += (record["text"], record["finish_reason"]) != (expected["text"], expected["finish_reason"])
        if int(key[1:]) % 4 == 1 and record["finish_reason"] == "stop":
            try:
                json.loads(record["text"])
            except ValueError:
                count["not_json"] += 1
    return dict(count)


def main() -> None:
    """Run the batch untouched, then killed, and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2400)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("words", nargs="*", help="more options of kvlite batch, behind --")
    given = parser.parse_args()
    import kvlite.engine.engine
    import kvlite.models.loading  # noqa: F401

    chance, started = random.Random(given.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["XDG_STATE_HOME"] = os.environ["XDG_CONFIG_HOME"] = str(home / "state")
        (home / "in.jsonl").write_text("".join(f"{json.dumps(line(number))}\n" for number in range(given.lines)))
        runs = {}
        for name in ("whole", "killed"):
            (home / name).mkdir()
            runs[name] = Batch(home / name, given.words)
        if code := wait(runs["whole"].start()):
            sys.exit(
                f"the run that nobody touched ended with {code}: {(home / 'whole' / 'log.txt').read_text()[-2000:]}"
            )
        whole_s = time.monotonic() - started
        moments: Counter[str] = Counter()
        while moments.total() < given.kills:
            left, to_come = given.lines - runs["killed"].count(), given.kills - moments.total()
            moment = kill(runs["killed"], chance, max(1, 3 * left // (2 * (to_come + 1))))
            if moment == "done":
                sys.exit(f"the batch was done after {moments.total()} kills; give more --lines or fewer --kills")
            moments[moment] += 1
        at_last_kill = runs["killed"].count()
        code = wait(runs["killed"].start())
        killed, whole = runs["killed"].records(), runs["whole"].records()
        result = {
            "machine": platform.processor() or platform.machine(),
            "lines": given.lines,
            "options": [*FLAGS, *given.words],
            "reserved_bytes_of_rows": sorted({record["kv"]["reserved_bytes"] for record in whole.values()}),
            "cached_tokens": sum(r["usage"]["prompt_tokens_details"]["cached_tokens"] for r in whole.values()),
            "kills": given.kills,
            "workers_killed": runs["killed"].workers_killed,
            "moments": dict(moments),
            "records_at_the_last_kill": at_last_kill,
            "exit_code": code,
            "records": len(killed),
            **compared(killed, whole),
            "seconds_whole": round(whole_s, 1),
            "seconds": round(time.monotonic() - started, 1),
        }
    print(json.dumps(result, indent=2))
    if given.out is not None:
        given.out.write_text(f"{json.dumps(result, indent=2)}\n")


if __name__ == "__main__":
    main()
