"""`kvlite eval` on the built-in model."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from kvlite.cli import main
from kvlite.record.store import RunRecords
from tests.matrix import but_few
from tests.program import finish, start

SMALL = ["eval", "demo", "--items", "2", "--length", "200", "--kv-budget", "40tok", "--policy", "window"]
NEEDLES = [*SMALL, "--suite", "needles"]


@pytest.fixture(autouse=True)
def up_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in model answers few of the questions."""
    monkeypatch.setattr("kvlite.evaluation.summary.LEAST_RIGHT", 0.0)


def test_asks_and_scores_text_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*SMALL, "--length", "500", "--suite", "needles,kl", "--free", "--answer-tokens", "8"]
    args += ["--journal", str(tmp_path / "j"), "--json"]
    assert main(args) == 0
    first = json.loads(capsys.readouterr().out)
    lines = (tmp_path / "j").read_text()
    assert main([*args, "--html", str(tmp_path / "page.html")]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (tmp_path / "j").read_text() == lines
    assert "<svg" in (tmp_path / "page.html").read_text()
    needles, kl = first["suites"]
    full, window = kl["variants"][0], kl["variants"][-1]
    assert full["figures"]["kl"]["value"] == 0 < window["figures"]["kl"]["value"]
    assert needles["variants"][0]["is_reference"] and needles["variants"][0]["count"] > 0
    assert sum(part["count"] for part in needles["variants"][1]["by_distance"]) == needles["variants"][1]["count"]
    assert {"of_full", "right", "nll", "free", "free_of_full"} == set(needles["variants"][1]["figures"])
    assert all(isinstance(answer["answer"], str) for answer in needles["variants"][1]["answers"])
    assert "the full cache answers" in first["recommendation"] or "No budget" in first["recommendation"]
    record = RunRecords().load("last")
    assert (record.command, record.exit_code, record.kv, record.host.device) == ("eval", 0, None, "cpu")
    assert record.model is not None and record.model.alias == "demo"


def test_policies_are_compared_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    policies = "snapkv:observed=8,pooled=3,window:sinks=4,window:sinks=8"
    args = [*SMALL, "--length", "500", "--suite", "kl", "--policy", policies, "--json"]
    assert main(args) == 0
    _, *measured = json.loads(capsys.readouterr().out)["suites"][0]["variants"]
    assert {variant["name"] for variant in measured} == {"snapkv:observed=8,pooled=3", "window", "window:sinks=8"}
    assert {variant["parameters"]["sinks"] for variant in measured} == {0, 4, 8}


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--suite", "riddles"], 2, "unknown suite 'riddles'"),
        (["--suite", "needles,,kl"], 2, "an empty item"),
        (["--policy", "nothing"], 2, "unknown KV policy 'nothing'"),
        (["--policy", "window,sinks=8"], 2, "'sinks=8' has settings and no name"),
        (["--policy", "window:sinks=8,sink=9"], 2, "has no setting 'sink'"),
        (["--dtype", "float8"], 2, "unknown dtype 'float8'"),
        (["--kv-dtype", "auto,int2"], 2, "no slot format 'int2'"),
        (["--device", "abacus"], 2, "unknown device 'abacus'"),
        (["--share", "5,"], 2, "an empty item"),
        (["--share", "0"], 2, "--share 0 is no percentage"),
        (["--share", "101%"], 2, "--share 101% is no percentage"),
        (["--share", "half"], 2, "--share half is no percentage"),
        (["--share", "0.1"], 4, "the smallest that works"),
        (["--kv-budget", "auto"], 2, "--kv-budget auto is no size"),
        (["--kv-budget", "0tok"], 2, "is nothing"),
        (["--length", "99999"], 2, "more than the model's window"),
        (["--length", "99999", "--suite", "ppl,kl"], 2, "more than the model's window"),
        (["--text", "notes.txt", "--suite", "cloze"], 2, "finds nothing to ask for"),
        (["--text", "missing.txt"], 2, "missing.txt"),
        (["--text", "empty.txt"], 2, "is empty"),
        (["--html", "nowhere/page.html"], 2, "'--html': nowhere/page.html: no such folder"),
        (["--html", "folder"], 2, "'--html': folder: a folder"),
        (["--html", "notes.txt", "--text", "notes.txt"], 2, "would be lost"),
        (["--journal", "nowhere/j"], 2, "'--journal': nowhere/j: no such folder"),
        (["--journal", "folder"], 2, "'--journal': folder: a folder"),
        (["--journal", "notes.txt"], 2, "is no result of kvlite eval"),
        (["--journal", "one", "--html", "./one"], 2, "name the same file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_before_any_work(
    args: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("empty.txt").write_text(" \n")
    Path("notes.txt").write_text("mine\n")
    assert main(["eval", "demo", "--items", "1", "--length", "200", "--suite", "kl", *args]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert says in line
    assert {path.name: path.is_file() and path.read_text() for path in Path().iterdir()} == {
        "folder": False,
        "empty.txt": " \n",
        "notes.txt": "mine\n",
    }


def test_a_file_that_may_not_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert main([*NEEDLES, "--html", str(tmp_path / "page.html")]) == 2
    assert "may not be written" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_where_the_page_cannot_be_written_the_table_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NEEDLES, "--html", "/dev/full"]) == 1
    captured = capsys.readouterr()
    assert "POLICY" in captured.out
    assert "cannot write /dev/full: No space left on device" in captured.err


def test_what_is_named_twice_is_measured_once(capsys: pytest.CaptureFixture[str]) -> None:
    named = [
        "--suite",
        "kl",
        "--policy",
        "window,window:sinks=4",
        "--share",
        "50,50%",
        "--items",
        "1",
        "--length",
        "60",
    ]
    assert main(["eval", "demo", *named, "--json"]) == 0
    (suite,) = json.loads(capsys.readouterr().out)["suites"]
    assert [each["name"] for each in suite["variants"]] == ["full", "window"]


def test_stdout_is_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NEEDLES, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["schema"] == "kvlite.eval/2"


def test_quiet_leaves_the_table_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", *NEEDLES]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert re.search(r"^window +40tok", captured.out, re.MULTILINE)


def test_a_pipe_gets_one_table_without_escapes_however_wide(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--suite", "kl"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert len(re.findall(r"^POLICY", captured.out, re.MULTILINE)) == 1
    assert max(map(len, captured.out.splitlines())) > 100


def test_without_a_model_it_says_that_the_built_in_one_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *NEEDLES[2:]]) == 0
    assert "no model is named: the built-in demo answers" in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "code"), but_few([(signal.SIGINT, 130), (signal.SIGTERM, 143)], (signal.SIGINT, 130)))
def test_stopped_it_keeps_what_was_measured_and_goes_on_from_there(
    tmp_path: Path, stop: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "j"
    args = [
        *SMALL,
        "--suite",
        "kl",
        "--length",
        "600",
        "--items",
        "6",
        "--batch-size",
        "1",
        "--journal",
        str(journal),
        "--json",
    ]
    process = start(*args, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
        time.sleep(0.01)
    process.send_signal(stop)
    returned, out, err = finish(process)
    assert (returned, out) == (code, "")
    assert f"what was measured is in {journal}; the same command goes on from there" in err
    assert "Traceback" not in err
    before = journal.read_bytes()
    assert 2 <= before.count(b"\n") < 12 and before.endswith(b"\n")
    assert main(args) == 0
    assert journal.read_bytes().startswith(before)
    assert journal.read_bytes().count(b"\n") == 12
    gone_on = capsys.readouterr().out
    assert main([*args[:-3], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(gone_on)


def test_on_a_terminal_every_line_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("kvlite.console.Console.is_terminal", True)
    assert main(["-q", "--plain", *SMALL, "--suite", "kl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 80
    assert sum(line.startswith("POLICY") for line in lines) > 1
