"""A whole batch on a model of arithmetic: what is written, what is said, how it ends and goes on."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from kvlite.batch import batch
from kvlite.batch.batch import Batch
from kvlite.batch.dry_run import dry_run
from kvlite.batch.output import LockedFile
from kvlite.batch.tally import Tally
from kvlite.console import Console
from kvlite.engine.request import Request
from kvlite.errors import (
    BatchFailed,
    Interrupted,
    KvliteError,
    ModelNotFound,
    OutputError,
    Terminated,
    TimeLimit,
    UsageError,
)
from kvlite.memory.format import slot_format
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions
from kvlite.record.recorder import Recorder


class Desk:
    """A folder, a model and what a batch on them says.

    `stop_after` says what happens once that many tokens were asked for: something is raised, or done to the engine.
    """

    def __init__(self, folder: Path, text: Any, new_engine: Any, new_rows: Any) -> None:
        self.folder, self.text, self.new_engine, self.new_rows = folder, text, new_engine, new_rows
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.identity = "org/m@sha"
        self.window: int | None = None
        self.identity_error: KvliteError | None = None
        self.open_error: KvliteError | None = None
        self.opened = 0
        self.chosen: list[str | None] = []
        self.stop_after: tuple[int, BaseException | Callable[[Any], None]] | None = None

    @property
    def out(self) -> Path:
        return self.folder / "out.jsonl"

    def run(self, **asked: Any) -> None:
        Batch(*self.arguments(**asked), Recorder("batch", (), report="none")).run()

    def arguments(
        self, *, max_tokens: int | None = None, min_tokens: int | None = None, as_json: bool = False, **asked: Any
    ) -> tuple[BatchOptions, AnswerOptions, Callable[[str | None], Any], Console]:
        options = {"input": str(self.folder / "in.jsonl"), "output": str(self.out), "progress": "none"} | asked
        console = Console(as_json=as_json, stdout=self.stdout, stderr=self.stderr)
        return (
            BatchOptions(**options),
            AnswerOptions(max_tokens=max_tokens, min_tokens=min_tokens),
            self.choose,
            console,
        )

    def choose(self, from_lines: str | None) -> Any:
        self.chosen.append(from_lines)
        return SimpleNamespace(
            required=from_lines or "default",
            spec=SimpleNamespace(options=ModelOptions(), stored=None, budget=None),
            params={"kv_policy": "window"},
            identity=self._identify,
            open=self._open,
            plan=lambda: (self.text, self._fit()),
        )

    def _fit(self) -> Any:
        plan = self.new_engine(rows=2).plan
        return SimpleNamespace(
            shape=SimpleNamespace(window=self.window),
            spec=SimpleNamespace(slot_format=slot_format("int8", "float32")),
            rows=lambda budget, slots, lines: plan,
        )

    def _identify(self) -> str:
        if self.identity_error is not None:
            raise self.identity_error
        return self.identity

    def _open(self, recorder: Recorder) -> Any:
        if self.open_error is not None:
            raise self.open_error
        self.opened += 1
        started = 0

        def fails(request: Request) -> None:
            nonlocal started
            started += 1
            if self.stop_after and started > self.stop_after[0]:
                happens = self.stop_after[1]
                if isinstance(happens, BaseException):
                    raise happens
                happens(engine)

        engine = self.new_engine(rows=2, fails=fails)
        loaded = SimpleNamespace(window=self.window)
        model = SimpleNamespace(name="org/m@sha7", text=self.text, generation={}, loaded=loaded)
        return self.new_rows(engine, model)

    def ask(self, *prompts: str) -> None:
        (self.folder / "in.jsonl").write_text("".join(f"{json.dumps({'id': p, 'prompt': p})}\n" for p in prompts))

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    @property
    def said(self) -> str:
        return self.stderr.getvalue()


@pytest.fixture
def desk(tmp_path: Path, text: Any, new_engine: Any, new_rows: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("sys.argv", ["kvlite", "batch", "in.jsonl", "-o", "my out.jsonl", "--overwrite"])
    desk = Desk(tmp_path, text, new_engine, new_rows)
    desk.ask("a", "bb", "ccc", "dd")
    return desk


def test_every_line_has_a_record_and_the_end_is_said(desk: Desk) -> None:
    desk.run()
    assert {record["id"]: record["text"] for record in desk.records()} == {
        "a": "A",
        "bb": "BB",
        "ccc": "CCC",
        "dd": "DD",
    }
    assert "4 ok · 0 failed" in desk.said
    assert "evicted" in desk.said


def test_without_an_output_records_go_to_stdout(desk: Desk) -> None:
    desk.run(output=None)
    assert len([json.loads(line) for line in desk.stdout.getvalue().splitlines()]) == 4
    assert sorted(path.name for path in desk.folder.iterdir()) == ["in.jsonl"]


def test_on_a_terminal_records_go_to_a_file_named_after_the_input(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    monkeypatch.setattr(desk.stdout, "isatty", lambda: True)
    desk.run(output=None)
    assert len((desk.folder / "in.out.jsonl").read_text().splitlines()) == 4
    assert "the records go to in.out.jsonl" in desk.said


def test_a_finished_batch_run_again_loads_no_model(desk: Desk) -> None:
    desk.run()
    before = desk.out.read_bytes()
    desk.run()
    assert (desk.out.read_bytes(), desk.opened) == (before, 1)
    assert "nothing to do: all 4 records are there" in desk.said


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Terminated("terminated")])
def test_a_batch_that_was_stopped_goes_on(desk: Desk, stop: BaseException) -> None:
    desk.stop_after = (5, stop)
    expected = Interrupted if isinstance(stop, KeyboardInterrupt) else Terminated
    with pytest.raises(
        expected, match=r"after \d of 4 records; to continue, run: kvlite batch in.jsonl -o 'my out.jsonl'$"
    ):
        desk.run()
    before = desk.records()
    assert 0 < len(before) < 4
    desk.stop_after = None
    desk.run()
    assert desk.records()[: len(before)] == before
    assert sorted(record["id"] for record in desk.records()) == ["a", "bb", "ccc", "dd"]
    assert f"{len(before)} resumed" in desk.said


def test_a_torn_line_is_said_and_runs_again(desk: Desk) -> None:
    desk.run()
    desk.out.write_bytes(desk.out.read_bytes()[:-9])
    desk.run()
    assert sorted(record["id"] for record in desk.records()) == ["a", "bb", "ccc", "dd"]
    assert "torn line" in desk.said


def test_other_settings_are_refused_unless_forced_or_started_over(desk: Desk) -> None:
    desk.run()
    with pytest.raises(UsageError, match="with max_tokens 1024, not 3"):
        desk.run(max_tokens=3)
    desk.run(max_tokens=3, force_resume=True)
    desk.run(max_tokens=1, overwrite=True)
    assert {record["text"] for record in desk.records()} == {"A", "B", "C", "D"}


def test_another_model_or_input_is_refused(desk: Desk) -> None:
    desk.run()
    desk.identity = "org/m@new"
    with pytest.raises(UsageError, match="with model org/m@sha, not org/m@new"):
        desk.run()
    desk.identity = "org/m@sha"
    desk.ask("a", "changed")
    with pytest.raises(UsageError, match="from other input"):
        desk.run()


@pytest.mark.parametrize("asked", [{}, {"force_resume": True}, {"retry_errors": True}])
def test_a_file_of_something_else_is_left_as_it_is(desk: Desk, asked: dict[str, Any]) -> None:
    desk.out.write_text("my notes,\nwithout a last newline")
    with pytest.raises(UsageError, match=r"no readable|no batch record"):
        desk.run(**asked)
    assert desk.out.read_text() == "my notes,\nwithout a last newline"
    assert sorted(path.name for path in desk.folder.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_starting_over_waits_until_the_model_is_found(desk: Desk) -> None:
    desk.run()
    before = desk.records()
    desk.identity_error = ModelNotFound("no such model")
    with pytest.raises(ModelNotFound):
        desk.run(overwrite=True)
    assert desk.records() == before


def test_no_resume_leaves_an_output_alone(desk: Desk) -> None:
    desk.run(resume=False)
    with pytest.raises(UsageError, match="has records"):
        desk.run(resume=False)


def test_a_second_run_is_refused_before_a_model_is_loaded(desk: Desk) -> None:
    held = LockedFile(desk.out)
    with pytest.raises(UsageError, match="another run"):
        desk.run()
    held.close()
    assert desk.opened == 0


def test_the_input_is_never_the_output(desk: Desk) -> None:
    with pytest.raises(UsageError, match="is the input"):
        desk.run(output=str(desk.folder / "in.jsonl"))


def test_failed_lines_are_records_and_make_the_batch_fail(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text('"ok"\nbroken\n{"prompt":""}\n')
    with pytest.raises(BatchFailed, match=r"2 of 3 records are failures .*--retry-errors"):
        desk.run()
    assert [record["error"] is None for record in desk.records()].count(False) == 2
    with pytest.raises(BatchFailed, match="2 of 3"):
        desk.run()
    assert len(desk.records()) == 3


def test_retry_errors_runs_failed_lines_again_and_keeps_each_id_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BatchFailed):
        desk.run(timeout=1e-9)
    assert {record["error"]["code"] for record in desk.records() if record["error"]} == {"timeout"}
    desk.run(retry_errors=True)
    assert sorted(record["id"] for record in desk.records()) == ["a", "bb", "ccc", "dd"]
    assert all(record["error"] is None for record in desk.records())


@pytest.mark.parametrize("ends_early", ["errors", "model"])
def test_failed_records_whose_lines_did_not_run_again_are_kept(desk: Desk, ends_early: str) -> None:
    (desk.folder / "in.jsonl").write_text('{"id":"a","prompt":""}\n{"id":"b","prompt":"b"}\n{"id":"c","prompt":""}\n')
    with pytest.raises(BatchFailed):
        desk.run()
    before = {record["id"]: record["error"] for record in desk.records()}
    if ends_early == "model":
        desk.open_error = ModelNotFound("gone")
    with pytest.raises(ModelNotFound if ends_early == "model" else BatchFailed):
        desk.run(retry_errors=True, max_errors=1)
    assert {record["id"]: record["error"] for record in desk.records()} == before
    assert len(desk.records()) == 3


def test_an_interrupted_retry_says_how_many_failures_did_not_run_again(desk: Desk) -> None:
    with pytest.raises(BatchFailed):
        desk.run(timeout=1e-9)
    desk.stop_after = (5, KeyboardInterrupt())
    with pytest.raises(Interrupted, match=r"after 4 of 4 records, \d of them failures that did not run again; to"):
        desk.run(retry_errors=True)


def test_failures_that_did_not_run_again_count_at_the_end(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text('{"id":"a","prompt":""}\n"b"\n{"id":"c","prompt":""}\n')
    with pytest.raises(BatchFailed):
        desk.run()
    with pytest.raises(BatchFailed, match="2 of 3 records are failures"):
        desk.run(retry_errors=True, limit=2)
    with pytest.raises(UsageError, match="leave out one of them"):
        desk.run(retry_errors=True, overwrite=True)
    assert len(desk.records()) == 3


def test_an_order_that_does_not_hold_is_refused_or_said(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text('{"id":"a","prompt":""}\n"b"\n"c"\n')
    with pytest.raises(BatchFailed):
        desk.run()
    with pytest.raises(UsageError, match="with ordered unset, not True; --overwrite starts over"):
        desk.run(ordered=True)
    for _ in range(2):
        with pytest.raises(BatchFailed):
            desk.run(ordered=True, overwrite=True)
        assert "--ordered" not in desk.said
    with pytest.raises(BatchFailed):
        desk.run(ordered=True, retry_errors=True)
    assert "follow those that are there" in desk.said


def test_retry_errors_needs_a_file_of_records(desk: Desk) -> None:
    for asked in ({"output": None}, {"out_format": "text"}):
        with pytest.raises(UsageError, match="--retry-errors needs"):
            desk.run(retry_errors=True, **asked)


def test_too_many_errors_stop_the_batch(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text("broken\n" * 10)
    with pytest.raises(BatchFailed, match=r"stopped at 3 failed of 3 records; to continue, run"):
        desk.run(max_errors=3)
    assert len(desk.records()) == 3


def test_the_time_of_the_whole_run_ends_it_in_the_midst_of_a_pass(desk: Desk) -> None:
    desk.stop_after = (5, lambda engine: time.sleep(60))
    with pytest.raises(TimeLimit, match=r"--max-time of 1 s is over after \d of 4 records; to continue, run"):
        desk.run(max_time=1.0, summary=str(desk.folder / "summary.json"))
    assert json.loads((desk.folder / "summary.json").read_text())["total"] == len(desk.records())


def test_the_time_may_be_over_before_anything_is_written(desk: Desk) -> None:
    with pytest.raises(TimeLimit, match=r"--max-time of 1e-09 s is over after 0 records$"):
        desk.run(max_time=1e-9)
    assert not desk.out.exists()


def test_a_record_that_takes_too_long_is_ended_though_no_token_comes(desk: Desk) -> None:
    def wait_for_the_end(engine: Any) -> None:
        while not engine.cancelled:
            time.sleep(0.001)

    desk.ask("abc")
    desk.stop_after = (2, wait_for_the_end)
    with pytest.raises(BatchFailed):
        desk.run(timeout=0.3)
    (record,) = desk.records()
    assert (record["error"]["code"], record["text"]) == ("timeout", "AB")


def test_settings_that_cannot_be_leave_nothing_behind_and_load_nothing(desk: Desk) -> None:
    with pytest.raises(UsageError, match="min_tokens is 5, more than the 3 of max_tokens"):
        desk.run(max_tokens=3, min_tokens=5)
    assert ([*desk.folder.iterdir()], desk.opened) == ([desk.folder / "in.jsonl"], 0)


def test_nothing_is_written_where_the_input_or_the_model_is_missing(desk: Desk) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*missing.jsonl: No such file"):
        desk.run(input=str(desk.folder / "missing.jsonl"))
    desk.identity_error = ModelNotFound("no such model")
    with pytest.raises(ModelNotFound):
        desk.run()
    assert [path.name for path in desk.folder.iterdir()] == ["in.jsonl"]


def test_a_pipe_that_waits_holds_up_no_record(desk: Desk) -> None:
    """Reads the second line only when the first has its record."""
    fifo = desk.folder / "fifo"
    os.mkfifo(fifo)

    def feed() -> None:
        with fifo.open("w") as pipe:
            print('"a"', file=pipe, flush=True)
            while not desk.out.exists() or not desk.out.read_text().endswith("\n"):
                time.sleep(0.001)
            print('"b"', file=pipe)

    feeding = Thread(target=feed, daemon=True)
    feeding.start()
    desk.run(input=str(fifo))
    feeding.join()
    assert [record["text"] for record in desk.records()] == ["A", "B"]


def test_repeated_ids_of_a_file_end_it_before_anything_runs(desk: Desk) -> None:
    desk.ask("a", "b", "a")
    with pytest.raises(UsageError, match="line 3 has the id"):
        desk.run()
    assert not desk.out.exists()


def test_lines_name_the_model_and_others_are_mismatches(desk: Desk) -> None:
    lines = [{"prompt": "a"}, {"prompt": "b", "model": "m"}, {"prompt": "c", "model": "x"}]
    (desk.folder / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(BatchFailed, match="1 of 3"):
        desk.run()
    assert desk.chosen == ["m"]
    assert [record["error"]["code"] for record in desk.records() if record["error"]] == ["model_mismatch"]


def test_keys_without_effect_are_said_once(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text('{"prompt":"a","y":[],"x":1}\n{"prompt":"b","y":[]}\n')
    desk.run()
    assert desk.said.count("y, x") == 1
    assert "line 1 has keys that are ignored: y, x" in desk.said


def test_text_output_is_in_order_with_a_blank_line_for_a_failure(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text('"long one"\nbroken\n"b\\nc"\n')
    with pytest.raises(BatchFailed):
        desk.run(out_format="text")
    assert desk.out.read_text() == "LONG ONE\n\nB\\nC\n"
    assert "line 2: not JSON" in desk.said
    with pytest.raises(UsageError, match="text output cannot be resumed"):
        desk.run(out_format="text")


def test_ordered_records(desk: Desk) -> None:
    desk.ask("long one", "b", "c")
    desk.run(ordered=True)
    assert [record["id"] for record in desk.records()] == ["long one", "b", "c"]


def test_out_format_overrules_the_form_of_the_lines(desk: Desk) -> None:
    desk.run(out_format="openai")
    assert {record["response"]["status_code"] for record in desk.records()} == {200}


def test_the_summary_is_written(desk: Desk) -> None:
    desk.run(summary=str(desk.folder / "summary.json"), as_json=True)
    summary = json.loads((desk.folder / "summary.json").read_text())
    assert (summary["total"], summary["ok"], summary["failed"], summary["kv"]["budget_bytes"]) == (4, 4, 0, 1000)
    assert json.loads(desk.stdout.getvalue()) == summary


def test_a_summary_that_cannot_be_written_says_so(desk: Desk) -> None:
    (desk.folder / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="cannot write"):
        desk.run(summary=str(desk.folder / "loop"))


def test_an_empty_input_is_no_error(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text("\n")
    desk.run()
    assert (desk.records(), desk.opened) == ([], 0)
    assert "there are no lines" in desk.said


@pytest.mark.parametrize("selection", [{"limit": 0}, {"skip": 9}])
def test_a_selection_may_be_empty(desk: Desk, selection: dict[str, int]) -> None:
    desk.run(**selection)
    assert desk.records() == []


def test_the_lines_of_another_selection_count_neither_as_done_nor_as_those_to_come(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.ask(*"abcdef")
    desk.run(limit=4)
    shown, lines = [], []

    class Told(Tally):
        def progress(self, *args: Any) -> str:
            shown.append(super().progress(*args))
            return shown[-1]

    def open_workers(model: Any, answer: Any, options: Any, recorder: Any, num_lines: int) -> None:
        lines.append(num_lines)
        raise UsageError("enough")

    monkeypatch.setattr(batch, "Tally", Told)
    monkeypatch.setattr(batch, "open_workers", open_workers)
    with pytest.raises(UsageError, match="enough"):
        desk.run(skip=3, limit=3, devices=("cpu",))
    assert lines == [2]
    desk.run(skip=3, limit=3)
    assert shown[-1].startswith("3/3 ") and shown[-1].endswith("ETA 00:00")


@pytest.mark.parametrize(
    ("before", "now", "is_said"),
    [
        ({"limit": 2}, {"skip": 2}, False),
        ({"limit": 2}, {}, False),
        ({"skip": 2}, {}, True),
        ({"skip": 2}, {"limit": 2}, True),
        ({"skip": 3}, {"skip": 1}, True),
    ],
)
def test_an_order_that_a_selection_breaks_is_said(
    desk: Desk, before: dict[str, int], now: dict[str, int], is_said: bool
) -> None:
    desk.run(ordered=True, **before)
    desk.run(ordered=True, **now)
    assert ("follow those that are there" in desk.said) == is_said


def test_a_limit_can_be_raised_later(desk: Desk) -> None:
    desk.run(limit=1)
    assert [record["id"] for record in desk.records()] == ["a"]
    desk.run()
    assert len(desk.records()) == 4


def test_a_dry_run_counts_tokens_and_loads_nothing(desk: Desk) -> None:
    dry_run(*desk.arguments(as_json=True, max_tokens=10))
    planned = json.loads(desk.stdout.getvalue())
    assert (planned["ok"], planned["prompt_tokens"], planned["longest_prompt_tokens"]) == (4, 8, 3)
    assert planned["most_new_tokens"] == 40
    assert (planned["kv"]["dtype"], planned["kv"]["is_provisional"]) == ("int8", True)
    assert (desk.opened, desk.out.exists()) == (0, False)


def test_a_dry_run_counts_no_more_than_the_window(desk: Desk) -> None:
    desk.window = 7
    dry_run(*desk.arguments(as_json=True, max_tokens=10))
    assert json.loads(desk.stdout.getvalue())["most_new_tokens"] == 28


def test_a_dry_run_names_the_lines_that_cannot_be_asked(desk: Desk) -> None:
    (desk.folder / "in.jsonl").write_text('"ok"\nbroken\n')
    with pytest.raises(BatchFailed, match="1 of 2 lines cannot be answered"):
        dry_run(*desk.arguments())
    assert "line 2: not JSON" in desk.said
    assert "1 ok, 1 cannot be answered" in desk.stdout.getvalue()
    assert " in int8, if the model tolerates that\n" in desk.stdout.getvalue()


def test_a_line_may_not_take_for_ever(desk: Desk) -> None:
    assert BatchOptions(input="in").timeout == 3600
    desk.window = 2
    desk.ask("abcd")
    desk.run(max_tokens=10**9)
    assert [(record["text"], record["finish_reason"]) for record in desk.records()] == [("AB", "length")]


def test_what_is_not_supported_fails_unless_it_may_be_left_out(desk: Desk) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}
    (desk.folder / "in.jsonl").write_text(f"{json.dumps({'custom_id': 'r', 'body': body})}\n")
    with pytest.raises(BatchFailed):
        desk.run()
    (record,) = desk.records()
    assert record["response"]["status_code"] == 400
    assert record["response"]["body"]["error"]["param"] == "tools"
    desk.run(overwrite=True, ignore_unsupported=True)
    (record,) = desk.records()
    assert record["response"]["body"]["choices"][0]["message"]["content"] == "A"
    assert "keys that are ignored: tools" in desk.said


def test_a_line_that_cannot_be_read_fails_in_the_form_of_the_others(desk: Desk) -> None:
    good = json.dumps({"custom_id": "r", "body": {"messages": [{"role": "user", "content": "a"}]}})
    (desk.folder / "in.jsonl").write_text(f"{good}\nnot JSON\n")
    with pytest.raises(BatchFailed):
        desk.run()
    failed = next(record for record in desk.records() if record["custom_id"] == "line-2")
    assert failed["error"] is None
    assert (failed["response"]["status_code"], failed["response"]["body"]["error"]["type"]) == (
        400,
        "invalid_request_error",
    )
