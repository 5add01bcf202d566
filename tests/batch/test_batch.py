"""A whole batch on a model of arithmetic: what is written and what is said."""

from __future__ import annotations

import json
import os
import time
from threading import Thread

import pytest

from kvlite.errors import (
    BatchFailed,
    OutputError,
    UsageError,
)
from tests.batch.desk import Desk


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
