"""A dry run counts what a batch would take, and loads nothing."""

from __future__ import annotations

import json

import pytest

from kvlite.batch.dry_run import dry_run
from kvlite.errors import (
    BatchFailed,
)
from tests.batch.desk import Desk


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
