"""A batch that ended goes on where it stopped, or says why it does not."""

from __future__ import annotations

from typing import Any

import pytest

from kvlite.batch import batch
from kvlite.batch.output import LockedFile
from kvlite.batch.tally import Tally
from kvlite.errors import (
    BatchFailed,
    Interrupted,
    ModelNotFound,
    Terminated,
    UsageError,
)
from tests.batch.desk import Desk


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
