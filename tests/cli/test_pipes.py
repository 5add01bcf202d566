"""kvlite between other programs: bytes in, bytes out, and what is there when it is stopped half-way."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from kvlite.cli import main
from tests.architectures import tiny_model
from tests.matrix import but_few
from tests.program import COMMAND, environment, finish, start

NOTES = "Tom likes apples and his sister likes pears.\n" * 20
NUM_PROMPTS = 30
STEERING = ("\x1b[2J", "\x1b]0;owned\x07", "\r", "\x9b31m", "\u202e", "\x08")


def batch_args(folder: Path, *more: str) -> list[str]:
    return ["batch", str(folder / "in.jsonl"), "-m", "demo", "-o", str(folder / "out.jsonl"), *more]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds in.jsonl, whose answers take a while: hot ones end by their length."""
    requests = [{"id": f"r{n}", "prompt": f"Tell me story {n}", "seed": n} for n in range(NUM_PROMPTS)]
    settings = {"temperature": 5, "max_tokens": 40}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(request | settings) + "\n" for request in requests))
    return tmp_path


def ids(output: Path) -> list[str]:
    """The ids of the whole lines of an output file."""
    return [json.loads(line)["id"] for line in output.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def stop_half_way(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a batch, send it a signal after its first records; the exit code and stderr."""
    output = folder / "out.jsonl"
    process = start(*batch_args(folder, "--batch-size", "2"))
    deadline_s = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline_s:
        if output.exists() and output.read_bytes().count(b"\n") >= 3:
            process.send_signal(number)
            break
        time.sleep(0.01)
    code, out, err = finish(process)
    assert out == "" and "Traceback" not in err
    assert 3 <= len(ids(output)) < NUM_PROMPTS, "the signal came too late to prove anything"
    return code, err


@pytest.mark.matrix
def test_a_reader_that_has_enough_ends_the_run_quietly(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(NOTES)
    kvlite = shlex.join([*COMMAND, "run", "demo", "Summarise", "-t", "50", "--seed", "1", "-n", "3000", "--raw"])
    script = f"cat notes.txt | {kvlite} | head -c 20; codes=${{PIPESTATUS[@]}}; echo; echo $codes"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"0 0 0"
    said = done.stderr.decode().splitlines()
    assert len(said) <= 2 and not any("Error" in line or "Traceback" in line for line in said), said
    assert not any(line.startswith("kvlite:") for line in said), said


def test_a_batch_between_pipes_writes_nothing_but_records(folder: Path) -> None:
    lines = (folder / "in.jsonl").read_bytes().splitlines(keepends=True)[:4]
    process = start("batch", "-", "-m", "demo", "--color", "always", stdin=subprocess.PIPE)
    out, err = process.communicate(b"".join(lines), timeout=120)
    assert process.returncode == 0, err
    assert sorted(json.loads(line)["id"] for line in out.splitlines()) == ["r0", "r1", "r2", "r3"]
    assert out.endswith(b"\n") and not set(out) & {0x1B, 0x0D, 0x08}


@pytest.mark.parametrize(
    ("number", "code"), but_few([(signal.SIGTERM, 143), (signal.SIGINT, 130)], (signal.SIGINT, 130))
)
def test_a_batch_that_is_stopped_says_how_to_go_on(folder: Path, number: signal.Signals, code: int) -> None:
    ended, err = stop_half_way(folder, number)
    assert ended == code
    last = err.splitlines()[-1]
    assert last.startswith("kvlite: ") and "to continue, run: kvlite batch" in last
    assert (folder / "out.jsonl").read_bytes().endswith(b"\n")
    before = ids(folder / "out.jsonl")
    words = shlex.split(last.partition("to continue, run: kvlite ")[2])
    assert main(["-q", *words]) == 0
    assert ids(folder / "out.jsonl")[: len(before)] == before
    assert Counter(ids(folder / "out.jsonl")) == {f"r{n}": 1 for n in range(NUM_PROMPTS)}


def test_a_batch_that_is_killed_goes_on_with_each_id_once(folder: Path) -> None:
    code, _ = stop_half_way(folder, signal.SIGKILL)
    assert code == -signal.SIGKILL
    with (folder / "out.jsonl").open("ab") as output:
        output.write(b'{"id": "r29", "ind')  # what a power cut leaves
    assert main(["-q", *batch_args(folder, "--batch-size", "2")]) == 0
    assert Counter(ids(folder / "out.jsonl")) == {f"r{n}": 1 for n in range(NUM_PROMPTS)}


@pytest.fixture
def steering_model(tmp_path: Path) -> Path:
    """A model half of whose words would steer a terminal."""
    words = ["<unk>", "hi", " ho", *STEERING]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path / "steering")
    tiny_model("llama", {"vocab_size": len(words)}).save_pretrained(tmp_path / "steering")
    return tmp_path / "steering"


def answer_on(stdout: int, args: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of kvlite writing to a descriptor, which is closed."""
    with os.fdopen(stdout, "w", encoding="utf-8", newline="") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stdin", None)
        return main(args)


def test_what_would_steer_a_terminal_reaches_a_pipe_and_no_terminal(
    steering_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["-q", "run", str(steering_model), "hi", "--raw", "-t", "100", "--seed", "3", "-n", "120"]
    piped = tmp_path / "piped"
    assert answer_on(os.open(piped, os.O_WRONLY | os.O_CREAT), args, monkeypatch) == 0
    answer = piped.read_bytes().decode()
    assert all(word in answer for word in STEERING), "the model must say what the terminal must not see"

    master, slave = pty.openpty()
    assert answer_on(slave, args, monkeypatch) == 0
    shown = os.read(master, 1 << 16).decode().replace("\r\n", "\n")  # the line discipline adds the returns
    os.close(master)
    for character in "\x1b\x07\x08\r\x9b\u202e":
        answer = answer.replace(character, "")
    assert shown == answer


def test_ctrl_c_while_the_program_itself_is_loaded_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    done = subprocess.run(
        [sys.executable, "-m", "kvlite", "plan", "demo"],
        capture_output=True,
        env=environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a runner in the background ignores it
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
