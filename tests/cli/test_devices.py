"""`kvlite batch --devices` and `--ray`: workers on the built-in model, killed and stopped in mid-run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.program import finish, start

COUNT = 80
OPTIONS = ("-m", "demo", "--kv-budget", "200KB", "--kv-per-seq", "64tok", "-n", "16", "--greedy", "--dtype", "float32")
OUT = ("-o", "out.jsonl")
PROCESSES = (*OUT, "--devices", "cpu,cpu")
ACTORS = (*OUT, "--ray", "local", "--workers", "2")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
EACH = [PROCESSES, pytest.param(ACTORS, marks=[pytest.mark.matrix, needs_ray])]


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a batch of COUNT lines, of which every fourth begins with the same words."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shared = "The old house by the sea has a green door, two windows, a red roof and a garden with apple trees. " * 2
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(COUNT):
            prompt = f"{shared if number % 4 == 0 else ''}Tell me about {number} cats"
            file.write(f"{json.dumps({'id': f'p{number}', 'prompt': prompt})}\n")
    return lambda *args: start(
        *("batch", "in.jsonl", *OPTIONS, *args),
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a runner in the background ignores it
    )


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [
        one for one in found if "spawn_main" in " ".join(one.cmdline()) or one.cmdline()[0].startswith("ray::_Actor")
    ]


def await_records(process: subprocess.Popen[bytes], path: Path, count: int) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, finish(process)
        time.sleep(0.01)


@contextmanager
def half_fed(path: Path) -> Iterator[Callable[[], None]]:
    """Puts a pipe with the first half of the lines in the file's place; the call gives it the others, once.

    Until then a batch of them is in mid-run, however fast it is.
    """
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.unlink()
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # which waits for no reader
    feeding = [lines[len(lines) // 2 :]]

    def feed() -> None:
        os.write(pipe, b"".join(feeding.pop()))
        os.close(pipe)

    os.write(pipe, b"".join(lines[: len(lines) // 2]))
    yield feed
    if feeding:
        os.close(pipe)
    path.unlink()
    path.write_bytes(whole)


@pytest.mark.parametrize("workers", EACH, ids=["processes", "ray"])
def test_a_worker_killed_in_mid_run_loses_no_line_and_changes_no_answer(
    batch: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, workers: tuple[str, ...]
) -> None:
    code, out, err = finish(batch("--batch-size", "4"))
    assert code == 0, err
    alone = {record["id"]: record["text"] for record in map(json.loads, out.splitlines())}

    said = "(cpu) was killed by SIGKILL" if workers is PROCESSES else "(cpu) was lost"
    with half_fed(tmp_path / "in.jsonl") as feed:
        process = batch(*workers, "--summary", "sums.json", "--report", "record.json")
        await_records(process, tmp_path / "out.jsonl", 10)
        killed, *_ = workers_of(process)
        killed.kill()
        assert process.stderr is not None
        while said not in (line := process.stderr.readline().decode()):
            assert line, f"the command ended without: {said}"
        feed()
        code, out, err = finish(process)
    assert (code, out) == (0, ""), err
    found = records(tmp_path / "out.jsonl")
    assert len(found) == COUNT
    assert {record["id"]: record["text"] for record in found} == alone

    sums, record = (json.loads((tmp_path / name).read_text()) for name in ("sums.json", "record.json"))
    assert (sums["ok"], sums["failed"]) == (COUNT, 0)
    assert sums["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in found) > 0
    assert sums["kv"]["budget_bytes"] == record["kv"]["budget_bytes"]
    assert record["kv"]["budget_bytes"] in (200_000, 400_000)  # the one killed counts if it had made its rows
    assert record["kv"]["within_budget"] is True
    assert record["batch"]["ok"] == COUNT


@pytest.mark.matrix
@pytest.mark.parametrize("workers", EACH, ids=["processes", "ray"])
@pytest.mark.parametrize(("stop", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_it_leaves_no_process_and_the_same_command_goes_on(
    batch: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    workers: tuple[str, ...],
    stop: signal.Signals,
    expected: int,
) -> None:
    with half_fed(tmp_path / "in.jsonl"):
        process = batch(*workers)
        await_records(process, tmp_path / "out.jsonl", 3)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(workers_of(process)) == 2
        if stop is signal.SIGINT:
            os.killpg(process.pid, stop)  # as a terminal does
        else:
            process.send_signal(stop)
        code, _, err = finish(process)
    assert (code, "to continue, run: kvlite batch in.jsonl" in err.splitlines()[-1]) == (expected, True), err
    assert "Traceback" not in err
    assert psutil.wait_procs(started, timeout=30)[1] == []
    before = (tmp_path / "out.jsonl").read_bytes()
    code, _, err = finish(batch(*workers))
    assert code == 0, err
    assert (tmp_path / "out.jsonl").read_bytes().startswith(before)
    assert sorted(record["id"] for record in records(tmp_path / "out.jsonl")) == sorted(f"p{n}" for n in range(COUNT))


@pytest.mark.matrix
@pytest.mark.parametrize("workers", EACH, ids=["processes", "ray"])
def test_a_batch_that_is_killed_takes_its_workers_along(
    batch: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, workers: tuple[str, ...]
) -> None:
    with half_fed(tmp_path / "in.jsonl"):
        process = batch(*workers)
        await_records(process, tmp_path / "out.jsonl", 1)
        started = workers_of(process)
        assert len(started) == 2
        process.kill()
        process.communicate(timeout=60)
    assert psutil.wait_procs(started, timeout=30)[1] == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--devices", "gpu:0"), "'gpu:0' is no device for a worker; give for example cuda:0,cuda:1 or cpu:2"),
        (("--devices", "cpu:0"), "'cpu:0' is no device"),
        (("--devices", "cpu", "--device", "cpu"), "--devices cpu contradicts --device cpu; give one of them"),
        (("--devices", "cpu", "--ray", "auto"), "--ray auto contradicts --devices cpu; give one of them"),
        (("--workers", "2"), "--workers 2 needs --ray; on this machine give --devices"),
        pytest.param(("--devices", "cuda:99"), "device 'cuda:99' is not there", marks=pytest.mark.matrix),
    ],
)
def test_a_device_that_is_none_is_one_line(
    batch: Callable[..., subprocess.Popen[bytes]], args: tuple[str, ...], said: str
) -> None:
    code, out, err = finish(batch(*args))
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
