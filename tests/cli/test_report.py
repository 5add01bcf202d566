"""`kvlite report`: what goes to stdout, what is refused, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvlite.cli import main
from kvlite.record.recorder import Recorder
from kvlite.record.schema import ModelIdentity
from kvlite.record.store import RunRecords
from tests.record.measured import FakeEngine, counts

Run = Callable[..., tuple[int, str, str]]


def keep_run(command: str = "run", *, peak: int = 1_000_000) -> str:
    """Record a run as it would be, and return its id."""
    facts = {"reserved": 1_990_000, "budget": 2_000_000, "kept": 40}
    engine = FakeEngine(counts(**facts))
    with Recorder(command, [command, "demo"]) as recorder:
        recorder.opened(ModelIdentity(), {}, engine, "flag")
        engine.held = counts(live=peak, peak=peak, seen=50, **facts)
        recorder.sample()
    return RunRecords().paths()[0].stem


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["report", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("args", [(), ("last",)])
def test_the_last_run_is_shown_on_stdout(report: Run, args: tuple[str, ...]) -> None:
    run_id = keep_run()
    code, out, err = report(*args)
    assert (code, err) == (0, "")
    assert out.startswith("Stayed inside 2.00 MB: peak KV 1.000 MB (50.0 %)")
    assert f"{run_id} · kvlite run demo" in out
    assert "seen 50, kept 40, evicted 10" in out


def test_json_is_the_record_verbatim(report: Run) -> None:
    run_id = keep_run()
    path = RunRecords().folder / f"{run_id}.json"
    code, out, _ = report(run_id, "--json")
    assert (code, json.loads(out)) == (0, json.loads(path.read_text()))


def test_html_goes_to_its_file_and_stdout_stays_empty(report: Run, tmp_path: Path) -> None:
    keep_run()
    code, out, err = report("--html", "page.html")
    assert (code, out, err) == (0, "", "wrote page.html\n")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_html_that_finds_no_room_names_its_file(report: Run) -> None:
    keep_run()
    code, _, err = report("--html", "/dev/full")
    assert code == 1 and "cannot write /dev/full: No space left" in err


def test_html_that_cannot_be_written_exits_2(report: Run) -> None:
    keep_run()
    code, _, err = report("--html", "nowhere/page.html")
    assert code == 2 and "nowhere/page.html: no such folder; give a file's name" in err


def test_ls_lists_the_runs_newest_first(report: Run) -> None:
    first, second = keep_run("run"), keep_run("chat")
    code, out, _ = report("ls")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert rows[0][:2] == ["RUN", "COMMAND"]
    assert {row[0]: row[1] for row in rows[1:]} == {first: "run", second: "chat"}


def test_ls_quiet_prints_one_id_per_line_and_json_one_array(report: Run) -> None:
    run_id = keep_run()
    assert report("ls", "-q")[1] == f"{run_id}\n"
    (listed,) = json.loads(report("ls", "--json")[1])
    assert (listed["run_id"], listed["kv"]["peak_bytes"]) == (run_id, 1_000_000)
    assert "timeline" not in listed


def test_ls_without_runs_is_an_empty_list(report: Run) -> None:
    assert report("ls", "-q") == (0, "", "")
    assert report("ls", "--json")[1] == "[]\n"


def test_ls_shows_the_other_runs_beside_a_broken_file(report: Run) -> None:
    run_id = keep_run()
    (RunRecords().folder / "broken.json").write_text("{")
    code, out, err = report("ls", "-q")
    assert (code, out) == (0, f"{run_id}\n")
    assert "broken.json is not a run record" in err


def test_rm_deletes_the_named_runs_only(report: Run) -> None:
    first, second = keep_run(), keep_run()
    assert report("rm", first) == (0, "", f"removed {first}\n")
    assert report("ls", "-q")[1] == f"{second}\n"


def test_a_gate_that_is_true_exits_6_after_the_report(report: Run) -> None:
    keep_run()
    code, out, err = report("--fail-on", "peak_kv_bytes>2MB", "--fail-on", "kv.tokens_evicted>5")
    assert code == 6
    assert out.startswith("Stayed inside")
    assert err == "kvlite: kv.tokens_evicted is 10, fails on kv.tokens_evicted>5\n"


def test_a_gate_that_is_false_exits_0(report: Run) -> None:
    keep_run()
    assert report("--fail-on", "peak_kv_bytes>2MB")[0] == 0


@pytest.mark.parametrize("gate", ["nonsense>1", "peak_vram_bytes>1GB", "peak_kv_bytes"])
def test_a_gate_that_cannot_be_judged_exits_2_and_prints_no_report(report: Run, gate: str) -> None:
    keep_run()
    code, out, err = report("--fail-on", gate)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert gate.split(">")[0] in err


def test_compare_shows_what_differs_and_can_be_gated(report: Run) -> None:
    first, second = keep_run(peak=1_000_000), keep_run(peak=1_200_000)
    code, out, _ = report(first, "--compare", second)
    assert code == 0
    assert "+200 kB (+20.0 %)" in out
    assert "kv.budget_bytes" not in out
    assert report(first, "--compare", second, "--fail-on", "change.kv.peak_bytes>100kB")[0] == 6
    assert report(second, "--compare", first, "--fail-on", "change.kv.peak_bytes>100kB")[0] == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("last", "ls"), "one run at a time"),
        (("nobody",), "no run is called 'nobody'"),
        (("../x",), "cannot read ../x"),
        (("rm",), "needs a run"),
        (("rm", "../x.json"), "no run is called '../x.json'"),
        (("ls", "x"), "takes no run"),
        (("ls", "--html", "x.html"), "takes no --html"),
        (("rm", "x", "--fail-on", "a>1"), "takes no --fail-on"),
        (("--json", "--compare", "last"), "contradicts"),
        (("--html", "x.html", "--compare", "last"), "contradicts"),
    ],
)
def test_what_makes_no_sense_exits_2_in_one_line(report: Run, args: tuple[str, ...], said: str) -> None:
    keep_run()
    code, out, err = report(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_no_runs_yet_exits_2_and_says_what_to_do(report: Run) -> None:
    assert report() == (2, "", "kvlite: no run is recorded yet; use `kvlite run`, `chat` or `batch` first\n")


def test_a_corrupt_record_exits_2_and_is_named(report: Run, tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"schema":"kvlite.report/1","run_')
    code, out, err = report("torn.json")
    assert (code, out) == (2, "")
    assert "torn.json is not a run record" in err


def test_the_command_loads_no_torch_and_its_module_no_pydantic() -> None:
    script = (
        "import sys, kvlite.cli.report\n"
        "assert 'pydantic' not in sys.modules\n"
        "from kvlite.cli import main\n"
        "main(['report', 'ls'])\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
