"""The benchmark of 4-bit products runs from end to end on a CPU; its times there mean nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import ROOT, environment

COMMAND = [sys.executable, str(ROOT / "benchmarks" / "nf4.py"), "--tiny", "--device", "cpu"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("bitsandbytes", "triton")),
        reason="needs bitsandbytes and triton",
    ),
]


def test_every_shape_and_number_of_rows_is_measured_and_judged(tmp_path: Path) -> None:
    out = tmp_path / "nf4.json"
    command = [*COMMAND, "--dtype", "float16", "--rows", "1,4", "--out", str(out)]
    done = subprocess.run(command, env=environment() | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text("utf-8"))
    assert [(row["shape"], row["rows"]) for row in told["results"]] == [
        ("qkv", 1), ("qkv", 4), ("down", 1), ("down", 4)
    ]  # fmt: skip
    assert all(row[name] > 0 for row in told["results"] for name in ("bitsandbytes", "kvlite", "dense", "copy"))
    slow = sum(row["bitsandbytes"] < 0.7 * row["copy"] for row in told["results"])
    assert f"bitsandbytes is under 70% of the copy in {slow} of 4 cases:" in done.stdout


def test_without_a_gpu_or_an_interpreter_it_says_what_is_missing() -> None:
    compiled_only = {name: value for name, value in environment().items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(COMMAND, env=compiled_only, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("Triton kernels need a CUDA device, and this is cpu")
