"""The benchmark scripts run from end to end on a CPU, and engines with room for everything agree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.program import ROOT, environment

pytestmark = pytest.mark.matrix
ROOM_FOR_ALL, BOUNDED, LONG = "24:64", "40:16", "200:16"


def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A script of benchmarks/ as a user starts it."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *args]
    return subprocess.run(command, capture_output=True, text=True, env=compiled_only(), timeout=300)


def compiled_only() -> dict[str, str]:
    """The environment without Triton's interpreter, in which kernels take seconds a token."""
    return {name: value for name, value in environment().items() if name != "TRITON_INTERPRET"}


def test_a_batch_that_was_killed_answers_as_one_that_was_not() -> None:
    pytest.importorskip("llguidance", reason="the extra json is not here")
    done = run("killed.py", "--lines", "240", "--kills", "3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["records"], found["kills"], len(found["reserved_bytes_of_rows"])) == (240, 3, 2)
    assert not any(found[name] for name in ("exit_code", "missing", "failed", "different", "not_json"))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison of everything that runs on a CPU, and its page."""
    out = tmp_path_factory.mktemp("results") / "tiny"
    cases = ("--decode", ROOM_FOR_ALL, "--decode", BOUNDED, "--prefill", BOUNDED, "--prefill", LONG)
    peers = "kvlite,kvlite-int4,kvlite-triton,kvlite-captured,dynamic,static,quantized,compiled,kvpress"
    done = run("compare.py", "--shape", "tiny", "--device", "cpu", *cases, "--peers", peers, "--tokens", "8",
               "--rounds", "1", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.with_name("tiny.json").read_text())
    return found | {"page": out.with_name("tiny.md").read_text()}


def test_with_room_for_everything_all_engines_give_the_same_tokens(record: dict[str, Any]) -> None:
    same = {row["peer"]: row["same_as_dynamic"] for row in record["decode"] if row["slots"] == 64}
    assert {name: same[name] for name in ("kvlite", "static", "compiled")} == {"kvlite": 8, "static": 8, "compiled": 8}


def test_shares_of_the_copy_bandwidth_follow_from_bytes_and_rates(record: dict[str, Any]) -> None:
    for row in record["decode"]:
        assert row["share_of_copy"] == pytest.approx(
            row["read_bytes"] * row["tokens_s"] / record["ceilings"]["copy_bytes_s"]
        )
    assert {"command", "device", "versions", "dtype"} <= record.keys()


def test_a_longer_prompt_holds_no_more_bytes(record: dict[str, Any]) -> None:
    short, long = (row for row in record["prefill"] if row["peer"] == "kvlite")
    assert (short["context"], long["context"]) == (40, 200)
    assert short["kv_bytes"] == long["kv_bytes"] > 0 < short["processor_s"]
    assert "| 200 | 16 | kvlite |" in record["page"]


def test_a_record_names_no_path_of_the_machine(record: dict[str, Any]) -> None:
    assert record["command"][-2:] == ["--out", "tiny"]
    assert record["command"][1] == "compare.py"


def test_what_cannot_run_is_named_with_the_reason(record: dict[str, Any]) -> None:
    assert "--kvpress-python" in record["not_available"]["kvpress"]
    for peer in ("kvlite-triton", "kvlite-captured"):
        assert "need a CUDA device" in record["failed"][f"decode {BOUNDED}: {peer}"]
    assert "- not measured: kvpress: " in record["page"]


def test_an_interpreter_without_kvpress_is_told_so(tmp_path: Path) -> None:
    done = run("compare.py", "--shape", "tiny", "--device", "cpu", "--decode", BOUNDED, "--prefill", "none", "--peers",
               "kvpress", "--minutes", "0", "--kvpress-python", sys.executable,
               "--out", str(tmp_path / "r"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["not_available"] == {"kvpress": "kvpress: ModuleNotFoundError: No module named 'kvpress'"}
    assert found["left_out"] == [f"decode {BOUNDED}: kvlite"]


def test_decoding_is_compared_with_transformers_and_with_attention_removed(tmp_path: Path) -> None:
    out = tmp_path / "decode.json"
    done = run("decode.py", "--case", "24:16", "--tokens", "4", "--rounds", "1", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())["results"]
    assert found["kvlite"] > 0 and found["ceiling"] > 0
    assert found["ratio"] == pytest.approx(found["kvlite"] / found["transformers"])


def test_a_start_is_told_by_stage() -> None:
    done = run("startup.py", "--runs", "1")
    assert done.returncode == 0, done.stderr
    assert "import" in done.stdout and "weights" in done.stdout


def test_the_trial_of_kernels_says_what_it_finds_of_each() -> None:
    pytest.importorskip("triton", reason="the trial needs triton, which is not installed")
    sizes = ("--dims", "16", "--bits", "8", "--dtypes", "float16", "--slots", "24", "--repeats", "1")
    done = run("trial.py", "--device", "cpu", *sizes)
    assert done.returncode == 0, done.stderr + done.stdout
    modules, slots = (json.loads(line) for line in done.stdout.splitlines())
    assert (modules["kernels"], slots["kernels"]) == ("modules", "slots of 8 bits, mass by mean")
    assert modules["state"] == slots["state"] == "right" and slots["gain"] > 0


def test_products_with_4_bit_weights_are_told_by_way() -> None:
    pytest.importorskip("triton", reason="the kernels need triton, which is not installed")
    done = run("products.py", "--device", "cpu", "--shapes", "64x64", "--rows", "1", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    (told,) = map(json.loads, done.stdout.splitlines())
    assert all(told[way]["us"] > 0 for way in ("halves", "bitsandbytes", "triton"))


def test_the_list_for_a_gpu_says_that_there_is_none() -> None:
    hidden = environment() | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run([str(ROOT / "benchmarks" / "gpu.sh")], capture_output=True, text=True, env=hidden)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("no CUDA device answers here")


@pytest.mark.parametrize("failing", ["", "prompts"])
def test_the_list_for_a_gpu_runs_every_step_and_says_which_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """An interpreter that only notes what it is asked stands for the real one."""
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ncase "$*" in *"/{failing or "none"} "*) exit 3 ;; esac\n')
    python.chmod(0o755)
    settings = {"DEVICE": "cpu", "OUT": str(tmp_path / "out"), "PYTHON": str(python)}
    script = str(ROOT / "benchmarks" / "gpu.sh")
    done = subprocess.run([script], capture_output=True, text=True, env=os.environ | settings, timeout=60)
    calls = asked.read_text()
    for step, shape in (("large", "llama-3.1-8b"), ("prompts", "llama-3.1-8b"), ("small", "qwen2.5-0.5b")):
        assert f"compare.py --shape {shape} --device cpu --out {tmp_path}/out/{step}" in calls
    assert "-m pytest -q -m gpu tests/" in calls and "-m kvlite bench demo" in calls
    assert "benchmarks/trial.py --device cpu" in calls and "benchmarks/products.py --device cpu" in calls
    assert "-m kvlite doctor" in calls
    asked_for = {name for names in re.findall(r"--peers (\S+)", calls) for name in names.split(",")}
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert "kvlite" in asked_for <= set(import_module("compare").PEERS)
    assert done.returncode == (1 if failing else 0)
    assert ("failed: prompts (exit 3)" in done.stdout) == bool(failing)


def test_a_gguf_file_has_the_tokens_of_transformers_in_float32_and_both_are_measured(tmp_path: Path) -> None:
    from tests.architectures import tiny_model
    from tests.gguf.gguf_file import write_model

    asked = {"llama.rope.dimension_count": 16, "llama.vocab_size": 300, "general.name": "tiny"}  # by transformers
    file = write_model(tmp_path / "tiny.gguf", tiny_model("llama", {}, vocab_size=300), "Q8_0", **asked)
    text = ROOT / "docs" / "models.md"
    out = tmp_path / "out.json"
    few = ("--rounds", "1", "--tokens", "2", "--compared", "8")
    done = run("from_gguf.py", str(file), "--text", str(text), "--out", str(out), *few)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["same_tokens"] == [8] * 5
    assert all(0 < one["nats"] < 0.01 for one in record["divergence"].values())
    assert set(record["engines"]) == {"kvlite, first start", "kvlite", "transformers"}
    assert all(f"\n| {name} | " in done.stdout for name in record["engines"])
