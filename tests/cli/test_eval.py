"""`kvlite eval` on the built-in model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvlite.cli import main

SMALL = ["eval", "demo", "--conversations", "2", "--length", "500", "--kv-budget", "40tok", "--policy", "window"]


def test_measures_recall_and_forced_text_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*SMALL, "--suite", "recall,kl", "--journal", str(tmp_path / "j"), "--json"]
    assert main(args) == 0
    first = json.loads(capsys.readouterr().out)
    lines = (tmp_path / "j").read_text()
    assert main([*args, "--html", str(tmp_path / "page.html")]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (tmp_path / "j").read_text() == lines
    assert "<svg" in (tmp_path / "page.html").read_text()
    recall, kl = first["suites"]
    full, window = kl["variants"][0], kl["variants"][-1]
    assert full["figures"]["kl"]["value"] == 0 < window["figures"]["kl"]["value"]
    assert window["T"] == 1
    assert recall["variants"][0]["is_reference"] and recall["variants"][0]["count"] > 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--suite", "riddles"], 2),
        (["--policy", "nothing"], 2),
        (["--share", "5,"], 2),
        (["--kv-budget", "auto"], 2),
        (["--text", "missing.txt"], 2),
        (["--share", "0.1"], 4),
    ],
    ids=lambda value: str(value),
)
def test_bad_input_is_one_line(args: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "demo", "--conversations", "1", "--length", "100", *args]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
