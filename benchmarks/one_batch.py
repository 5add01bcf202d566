"""One `kvlite batch` in a process of its own, and what it took."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Ran:
    """The processor time and the clock's of a batch with loading, its records, its summary and its run record."""

    used_s: float
    wall_s: float
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    report: dict[str, Any]


def run_batch(model: str, lines: Sequence[dict[str, Any]], *flags: str, root: Path = ROOT) -> Ran:
    """Answer `lines` with the kvlite of the checkout `root`. Raises CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        source, out, summary, report = (
            Path(folder, name) for name in ("in.jsonl", "out.jsonl", "sum.json", "run.json")
        )
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        command = [sys.executable, "-m", "kvlite", "batch", str(source), "-o", str(out), "--summary", str(summary)]
        command += ["-m", str(Path(model).absolute()) if Path(model).exists() else model]
        command += ["--report", str(report), "--progress", "none", *flags]
        before, since = children_s(), time.monotonic()
        subprocess.run(command, check=True, cwd=root, env=environment(root))
        used_s, wall_s = children_s() - before, time.monotonic() - since
        records = [json.loads(record) for record in out.read_text("utf-8").splitlines()]
        return Ran(used_s, wall_s, records, _read(summary), _read(report))


def children_s() -> float:
    """The processor time of the processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment(root: Path = ROOT) -> dict[str, str]:
    """That of one thread and of the checkout `root`."""
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found
