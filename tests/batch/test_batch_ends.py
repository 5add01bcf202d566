"""Ends of a batch, or of one of its lines, before its answer: limits, time, and what is refused at the start."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kvlite.errors import (
    BatchFailed,
    ModelNotFound,
    TimeLimit,
    UsageError,
)
from kvlite.options import BatchOptions
from tests.batch.desk import Desk


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


def test_repeated_ids_of_a_file_end_it_before_anything_runs(desk: Desk) -> None:
    desk.ask("a", "b", "a")
    with pytest.raises(UsageError, match="line 3 has the id"):
        desk.run()
    assert not desk.out.exists()


def test_a_line_may_not_take_for_ever(desk: Desk) -> None:
    assert BatchOptions(input="in").timeout == 3600
    desk.window = 2
    desk.ask("abcd")
    desk.run(max_tokens=10**9)
    assert [(record["text"], record["finish_reason"]) for record in desk.records()] == [("AB", "length")]
