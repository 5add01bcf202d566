"""The benchmark scripts run from end to end on a CPU, and engines with room for everything agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.program import ROOT, environment

pytestmark = pytest.mark.slow
ROOM_FOR_ALL, BOUNDED, LONG = "24:64", "40:16", "200:16"


def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A script of benchmarks/ as a user starts it."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *args]
    return subprocess.run(command, capture_output=True, text=True, env=compiled_only(), timeout=300)


def compiled_only() -> dict[str, str]:
    """The environment without Triton's interpreter, in which kernels take seconds a token."""
    return {name: value for name, value in environment().items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison of everything that runs on a CPU, and its page."""
    out = tmp_path_factory.mktemp("results") / "tiny"
    cases = ("--decode", ROOM_FOR_ALL, "--decode", BOUNDED, "--prefill", BOUNDED, "--prefill", LONG, "--batch", BOUNDED)
    peers = "kvlite,kvlite-int4,kvlite-triton,kvlite-captured,dynamic,static,quantized,compiled,kvpress"
    done = run("compare.py", "--shape", "tiny", "--device", "cpu", *cases, "--peers", peers, "--tokens", "8",
               "--rounds", "1", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.with_name("tiny.json").read_text())
    return found | {"page": out.with_name("tiny.md").read_text()}


def test_with_room_for_everything_all_engines_give_the_same_tokens(record: dict[str, Any]) -> None:
    same = {row["peer"]: row["same_as_dynamic"] for row in record["decode"] if row["slots"] == 64}
    assert {name: same[name] for name in ("kvlite", "static", "compiled")} == {"kvlite": 8, "static": 8, "compiled": 8}


def test_every_part_has_rows_and_they_agree_with_the_ceilings(record: dict[str, Any]) -> None:
    assert {"decode", "prefill", "batch", "drift", "kernels"} <= record.keys()
    for row in record["decode"]:
        assert row["share_of_copy"] == pytest.approx(
            row["read_bytes"] * row["tokens_s"] / record["ceilings"]["copy_bytes_s"]
        )
    assert [row["tokens_seen"] for row in record["drift"] if row["peer"] == "kvlite"] == [100, 1_000, 1_000_000]
    assert all(row["call_s"] > 0 for row in record["kernels"])
    assert {"command", "device", "versions", "dtype"} <= record.keys()


def test_a_longer_prompt_holds_no_more_bytes_and_is_held_beside_the_shortest(record: dict[str, Any]) -> None:
    short, long = (row for row in record["prefill"] if row["peer"] == "kvlite")
    assert (short["context"], long["context"]) == (40, 200)
    assert short["kv_bytes"] == long["kv_bytes"] > 0 < short["processor_s"]
    assert "| kvlite | 16 | 40 |" in record["page"] and "| 1.00 | 1.00 |" in record["page"]


def test_a_record_names_no_path_of_the_machine(record: dict[str, Any]) -> None:
    assert record["command"][-2:] == ["--out", "tiny"]
    assert record["command"][1] == "compare.py"


def test_a_batch_in_equal_bytes_has_more_rows_in_bounded_slots(record: dict[str, Any]) -> None:
    rows = {row["peer"]: row for row in record["batch"]}
    assert rows["kvlite"]["rows"] > rows["dynamic"]["rows"] == 4
    assert rows["kvlite"]["kv_budget_bytes"] == rows["dynamic"]["kv_budget_bytes"]


def test_what_cannot_run_is_named_with_the_reason(record: dict[str, Any]) -> None:
    assert "--kvpress-python" in record["not_available"]["kvpress"]
    for peer in ("kvlite-triton", "kvlite-captured"):
        assert "need a CUDA device" in record["failed"][f"decode {BOUNDED}: {peer}"]
    assert "- not measured: kvpress: " in record["page"]


def test_an_interpreter_without_kvpress_is_told_so(tmp_path: Path) -> None:
    done = run("compare.py", "--shape", "tiny", "--device", "cpu", "--parts", "drift", "--peers", "kvpress",
               "--minutes", "0", "--kvpress-python", sys.executable, "--out", str(tmp_path / "r"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["not_available"] == {"kvpress": "kvpress: ModuleNotFoundError: No module named 'kvpress'"}
    assert found["left_out"] == [f"drift at {seen}: kvlite" for seen in (100, 1_000, 1_000_000)]


def test_the_list_for_a_gpu_says_that_there_is_none() -> None:
    hidden = environment() | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run([str(ROOT / "benchmarks" / "gpu.sh")], capture_output=True, text=True, env=hidden)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("no CUDA device answers here")


@pytest.mark.parametrize("failing", ["", "llama-2-7b-batch"])
def test_the_list_for_a_gpu_runs_every_part_and_says_which_failed(tmp_path: Path, failing: str) -> None:
    """An interpreter that only notes what it is asked stands for the real one."""
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ncase "$*" in *"/{failing or "none"} "*) exit 3 ;; esac\n')
    python.chmod(0o755)
    settings = {"DEVICE": "cpu", "OUT": str(tmp_path / "out"), "PYTHON": str(python)}
    script = str(ROOT / "benchmarks" / "gpu.sh")
    done = subprocess.run([script], capture_output=True, text=True, env=os.environ | settings, timeout=60)
    calls = asked.read_text()
    for shape in ("qwen2.5-0.5b", "llama-2-7b", "llama-3.1-8b"):
        for part in ("decode", "triton", "captured", "lowbit", "prefill", "batch"):
            assert f"compare.py --shape {shape} --device cpu --minutes 8 --out {tmp_path}/out/{shape}-{part}" in calls
    assert "-m pytest -q -m gpu tests/" in calls and "-m kvlite bench demo" in calls
    assert ("bench demo --capture" in calls, "bench-captured: skipped" in done.stdout) == (False, True)
    assert done.returncode == (1 if failing else 0)
    assert ("failed: llama-2-7b-batch (exit 3)" in done.stdout) == bool(failing)
