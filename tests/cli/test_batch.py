"""`kvlite batch` from the command line, on the built-in model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvlite.cli import main
from tests.matrix import but_few
from tests.scripted import chain, write_scripted

ROOT = Path(__file__).parents[2]
MODEL = ("-m", "demo", "--kv-budget", "200KB")
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a batch in a folder of its own, where a file holds its `stdin`."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: str | bytes = "") -> tuple[int, str, str]:
        (tmp_path / "stdin").write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        monkeypatch.setattr(sys, "argv", ["kvlite", "batch", *args])
        with (tmp_path / "stdin").open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            code = main(["batch", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def records(written: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.splitlines()]


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path.name


def test_a_pipe_in_and_a_pipe_out(run: Run) -> None:
    code, out, err = run("-", *MODEL, "-n", "8", stdin='"What is your name?"\n{"id":"b","prompt":"Hello"}\n')
    assert code == 0, err
    assert sorted(record["id"] for record in records(out)) == ["b", "line-1"]
    assert "2 ok · 0 failed" in err
    assert "\x1b" not in out + err


def test_openai_lines_have_openai_records(run: Run, tmp_path: Path) -> None:
    body = {"model": "gpt-9", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "n": 2}
    chat = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    code, out, err = run(write(tmp_path / "in.jsonl", chat), *MODEL)
    assert code == 0, err
    (record,) = records(out)
    response = record["response"]["body"]
    assert (record["custom_id"], record["response"]["status_code"]) == ("r1", 200)
    assert [choice["index"] for choice in response["choices"]] == [0, 1]
    assert response["model"] == "demo"
    assert "the models that lines name are ignored" in err


def test_without_m_the_lines_name_the_model(run: Run, tmp_path: Path) -> None:
    lines = [{"prompt": "Hello", "model": "demo"}, {"prompt": "Hello", "model": "other"}]
    code, out, _ = run(write(tmp_path / "in.jsonl", *lines), "-n", "3")
    assert code == 5
    assert {(record["error"] or {}).get("code") for record in records(out)} == {None, "model_mismatch"}


def test_a_batch_asks_for_a_model(run: Run, tmp_path: Path) -> None:
    expected = "kvlite: a batch needs a model: give -m MODEL (such as smollm2-135m), or lines that name one\n"
    for more in ((), ("--dry-run",)):
        assert run(write(tmp_path / "in.jsonl", "Hello"), *more) == (3, "", expected)


def test_an_array_is_refused_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('[{"prompt": "Hello"}]')
    code, out, err = run("in.json", "-m", "demo")
    assert (code, out) == (2, "")
    assert err == (
        "kvlite: in.json is one JSON array, not a line for each record; make lines of it: "
        "jq -c '.[]' in.json > lines.jsonl\n"
    )


def test_an_answer_that_was_begun_is_gone_on_with(run: Run, tmp_path: Path) -> None:
    write_scripted(tmp_path / "model", chain("go", "red", "green", "blue"))
    begun = {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "red"}], "id": "on"}
    anew = begun | {"id": "anew", "continue_final_message": False}
    wrong = {"id": "wrong", "messages": begun["messages"][:1], "continue_final_message": True}
    code, out, err = run(write(tmp_path / "in.jsonl", begun, anew, wrong), "-m", "./model", "--ordered")
    assert code == 5, err
    on, new, refused = records(out)
    assert (on["text"], new["text"]) == ("green blue", "")
    assert refused["error"]["message"] == (
        "continue_final_message: the last message is of the user; give an assistant's"
    )


def test_a_small_budget_evicts_and_is_never_exceeded(run: Run, tmp_path: Path) -> None:
    words = " ".join(["The cat sat on the mat and the dog ran away."] * 12)
    code, out, err = run(
        write(tmp_path / "in.jsonl", words, words),
        "-m",
        "demo",
        "--kv-budget",
        "300KB",
        "--kv-per-seq",
        "64tok",
        "-n",
        "9",
    )
    assert code == 0, err
    for record in records(out):
        kv = record["kv"]
        assert kv["peak_bytes"] <= kv["reserved_bytes"] <= kv["budget_bytes"]
        assert kv["tokens_evicted"] == kv["tokens_seen"] - kv["tokens_kept"] > 0


def test_answers_do_not_depend_on_the_batch(run: Run, tmp_path: Path) -> None:
    name = write(tmp_path / "in.jsonl", *[f"Tell me about {thing}" for thing in ("cats", "the sea", "bread", "you")])
    options = ("-m", "demo", "--kv-budget", "2MB", "--kv-per-seq", "100tok", "-n", "12", "-t", "0.7", "--seed", "5")
    alone = run(name, *options, "--batch-size", "1", "--ordered")[1]
    together = run(name, *options, "--batch-size", "4", "--ordered")[1]
    assert [record["text"] for record in records(alone)] == [record["text"] for record in records(together)]


def test_a_stop_string_ends_an_answer(run: Run, tmp_path: Path) -> None:
    name = write(tmp_path / "in.jsonl", {"prompt": "Hello"})
    answer = records(run(name, *MODEL, "--greedy")[1])[0]["text"]
    cut = records(run(name, *MODEL, "--greedy", "--stop", answer[3:6])[1])[0]
    assert (cut["text"], cut["finish_reason"]) == (answer[:3], "stop")


def test_plain_lines_and_csv(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Hello\n\nWho are you?\n")
    assert len(records(run("in.txt", *MODEL, "-n", "3")[1])) == 2
    (tmp_path / "in.csv").write_text("question,topic\nHello,a\n")
    (record,) = records(run("in.csv", "--prompt-column", "question", *MODEL, "-n", "3")[1])
    assert record["metadata"] == {"topic": "a"}
    code, out, _ = run("in.txt", "--out-format", "text", *MODEL, "-n", "3")
    assert (code, out.count("\n")) == (0, 2)


def test_bad_lines_are_records_and_exit_5(run: Run) -> None:
    lines = b'{"id":"a","prompt":""}\n\xff\xfe\n{"temperature":NaN}\nwords\n{"id":"a","prompt":"x"}\n"Hello"\n'
    code, out, err = run("-", *MODEL, "-n", "3", stdin=lines)
    assert code == 5
    codes = [record["error"]["code"] for record in records(out) if record["error"]]
    assert sorted(codes) == ["duplicate_id", *["invalid_request"] * 4]
    assert err.splitlines()[-1] == "kvlite: 5 of 6 records are failures and say why"


def test_a_dry_run_plans_without_weights(run: Run, tmp_path: Path) -> None:
    code, out, err = run(write(tmp_path / "in.jsonl", "Hello"), *MODEL, "--dry-run", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["ok"] == 1
    assert planned["kv"]["reserved_bytes"] <= planned["kv"]["budget_bytes"] == 200_000


@pytest.mark.parametrize(
    ("spelt", "meant"), [(("--dtype", "bf16"), ("--dtype", "bfloat16")), (("--4bit",), ("--quant", "4bit"))]
)
def test_a_dry_run_reads_options_however_they_are_spelt(
    run: Run, tmp_path: Path, spelt: tuple[str, ...], meant: tuple[str, ...]
) -> None:
    name = write(tmp_path / "in.jsonl", "Hello")
    code, out, err = run(name, *MODEL, "--dry-run", "--json", *spelt)
    assert code == 0, err
    assert out == run(name, *MODEL, "--dry-run", "--json", *meant)[1]


def test_a_dry_run_plans_the_cache_of_the_run(run: Run, tmp_path: Path) -> None:
    name = write(tmp_path / "in.jsonl", "Hello")
    options = ("--dtype", "bf16", "--kv-dtype", "bf16", "-n", "2")
    planned = json.loads(run(name, *MODEL, *options, "--dry-run", "--json")[1])
    (record,) = records(run(name, *MODEL, *options)[1])
    assert record["kv"]["dtype"] == "bfloat16"
    run(name, *MODEL, *options, "--report", "record.json")
    kv = json.loads((tmp_path / "record.json").read_text())["kv"]
    assert (kv["reserved_bytes"], kv["capacity_tokens"]) == (planned["kv"]["reserved_bytes"], planned["slots"])


def test_a_dry_run_leaves_the_cache_what_quantised_weights_leave(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write(tmp_path / "in.jsonl", "Hello")
    monkeypatch.setattr("kvlite.llm.spec.available_bytes", lambda: 80_000_000)  # 8 beside what a run needs
    monkeypatch.setattr("kvlite.record.measure.device_reading", lambda index: None)
    options = ("-m", "demo", "--dry-run", "--json", "--kv-budget", "auto")
    plain, quantised = (json.loads(run(name, *options, *flags)[1])["kv"] for flags in ((), ("--4bit",)))
    assert quantised["budget_bytes"] > plain["budget_bytes"]


def test_a_typo_leaves_no_output(run: Run, tmp_path: Path) -> None:
    name = write(tmp_path / "in.jsonl", "Hello")
    assert run("missing.jsonl", *MODEL, "-o", "out.jsonl")[0] == 2
    assert run(name, "-m", "no-such-model", "-o", "out.jsonl")[0] == 3
    assert not (tmp_path / "out.jsonl").exists()


def test_two_names_of_one_model_are_one_model(run: Run, tmp_path: Path) -> None:
    lines = [{"prompt": "Hello", "model": "demo"}, {"prompt": "Hello", "model": "Demo"}]
    code, _, err = run(write(tmp_path / "in.jsonl", *lines), "-n", "3")
    assert code == 0, err


def test_a_pipe_that_waits_holds_up_no_record(tmp_path: Path) -> None:
    """The second line is written when the first has its record; the end comes although a thread still reads."""
    command = [sys.executable, "-m", "kvlite", "batch", "-", *MODEL, "-n", "3", "--progress", "none"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    for key in ("a", "b"):
        process.stdin.write(f'{{"id":"{key}","prompt":"Hello"}}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == key
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    process.stdin.close()
    process.stdout.close()


def test_a_run_record_is_kept(run: Run, tmp_path: Path) -> None:
    code, _, err = run(write(tmp_path / "in.jsonl", "Hello"), *MODEL, "-n", "3", "--report", "record.json")
    assert code == 0, err
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["command"], record["exit_code"], record["batch"]["ok"]) == ("batch", 0, 1)
    assert record["kv"]["within_budget"] is True
    terms = {term["name"]: term for term in record["memory"]["terms"]}
    assert terms["kv"]["predicted_bytes"] == terms["kv"]["measured_bytes"] > 0
    assert record["kv"]["budget_bytes"] == 200_000
    assert [request["id"] for request in record["requests"]] == ["line-1"]


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("missing.jsonl",), 2, "cannot read missing.jsonl"),
    ((".",), 2, "cannot read ."),
    (("in.jsonl", "--shard", "5/4"), 2, "give 1/4"),
    (("in.jsonl", "--batch-size", "many"), 2, "'--batch-size': 'many' is no batch size; give auto"),
    (("in.jsonl", "--batch-size", "0"), 2, "'--batch-size': '0' is no batch size; give auto"),
    (("in.jsonl", "--timeout", "0"), 2, "'--timeout': 0.0 is no time; give seconds above 0"),
    (("in.jsonl", "--max-time", "nan"), 2, "'--max-time': nan is no time; give seconds above 0"),
    (("in.jsonl", "--summary", "no/s.json"), 2, "'--summary': no/s.json: no such folder"),
    (("in.jsonl", "--summary", "."), 2, "'--summary': .: a folder"),
    (("in.jsonl", "--summary", "-"), 2, "'--summary': - is no file"),
    (("in.jsonl", "-o", "/"), 1, "/: it is a folder; give -o a file's name"),
    (("in.jsonl", "--limit", "-1"), 2, "--limit"),
    (("in.jsonl", "-t", "nan"), 2, "temperature is nan"),
    (("in.jsonl", "--greedy", "-t", "1"), 2, "contradicts"),
    (("in.jsonl", "--kv-budget", "lots"), 2, "lots"),
    (("in.jsonl", "--kv-policy", "nope"), 2, "nope"),
    (("in.jsonl", "--format", "xml"), 2, "xml"),
    (("in.jsonl", "--prompt-column", "x", "--format", "csv"), 2, "no column 'x'"),
    (("in.jsonl", "-o", "in.jsonl"), 2, "is the input"),
    (("in.jsonl", "-o", "no/such/folder.jsonl"), 1, "cannot write to"),
    (("in.jsonl", "-o", "."), 1, "cannot write to"),
    (("in.jsonl", "-o", "notes.txt"), 2, "no readable"),
    (("in.jsonl", "--retry-errors"), 2, "--retry-errors needs"),
    (("in.jsonl", "-m", "no-such-model"), 3, "no-such-model"),
    (("in.jsonl", "--kv-budget", "1KB"), 4, "the smallest that works"),
    (("twice.jsonl",), 2, "line 2 has the id"),
]


@pytest.mark.parametrize(
    ("args", "expected", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    run: Run, tmp_path: Path, args: tuple[str, ...], expected: int, said: str
) -> None:
    write(tmp_path / "in.jsonl", "Hello")
    write(tmp_path / "twice.jsonl", {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    (tmp_path / "notes.txt").write_text("mine\n")
    code, out, err = run(*args, *(() if "-m" in args else ("-m", "demo")))
    assert (code, out) == (expected, "")
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert (tmp_path / "notes.txt").read_text() == "mine\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line_and_exit_1(run: Run, tmp_path: Path) -> None:
    code, _, err = run(write(tmp_path / "in.jsonl", "Hello"), *MODEL, "-n", "3", "-o", "/dev/full")
    assert (code, err.splitlines()[-1]) == (1, "kvlite: cannot write to /dev/full: No space left on device")


def started(tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    """A batch of its own process, once it has written its first records."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvlite", "batch", *args],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a runner in the background ignores it
    )
    out = tmp_path / "out.jsonl"
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_killed_at_any_moment_the_same_command_goes_on(run: Run, tmp_path: Path) -> None:
    prompts = [{"id": f"p{number}", "prompt": f"Tell me about {number} cats"} for number in range(40)]
    args = (write(tmp_path / "in.jsonl", *prompts), *MODEL, "--kv-per-seq", "48tok", "-n", "40", "-o", "out.jsonl")
    process = started(tmp_path, *args)
    process.send_signal(signal.SIGSTOP)  # so that it has not ended by the time the other run asks for its file
    code, _, err = run(*args)
    assert (code, "being written by another run" in err) == (2, True)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    out = tmp_path / "out.jsonl"
    before = out.read_bytes()
    assert 3 <= before.count(b"\n") < 40
    out.write_bytes(before + b'{"id": "p39", "ind')  # what a crash of the machine may leave
    code, _, err = run(*args)
    assert code == 0, err
    assert out.read_bytes().startswith(before)
    assert sorted(record["id"] for record in records(out.read_text())) == sorted(line["id"] for line in prompts)


@pytest.mark.parametrize(
    ("stop", "expected"), but_few([(signal.SIGTERM, 143), (signal.SIGINT, 130)], (signal.SIGTERM, 143))
)
def test_stopped_it_says_how_to_go_on(tmp_path: Path, stop: signal.Signals, expected: int) -> None:
    name = write(tmp_path / "in.jsonl", *[f"Tell me about {number} cats" for number in range(500)])
    process = started(tmp_path, name, *MODEL, "-n", "40", "-o", "out.jsonl", "--progress", "none")
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == expected, err
    assert "of 500 records; to continue, run: kvlite batch in.jsonl" in err.splitlines()[-1]
    assert (tmp_path / "out.jsonl").read_bytes().endswith(b"\n")
