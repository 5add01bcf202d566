"""No file that a batch writes is one that it reads, by whatever name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvlite.batch.paths import refuse_shared_files
from kvlite.errors import UsageError
from kvlite.options import BatchOptions


def check(folder: Path, *, report: str = "none", is_terminal: bool = False, **names: Any) -> None:
    names = {"input": "in.jsonl", "output": "out.jsonl"} | names
    paths = {name: value if value in ("-", None) else str(folder / value) for name, value in names.items()}
    refuse_shared_files(BatchOptions(**paths), report, is_terminal=is_terminal)


def test_files_of_their_own_are_fine(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    check(tmp_path, summary="summary.json", report=str(tmp_path / "report.json"))
    check(tmp_path, output=None, summary="out.jsonl")
    check(tmp_path, summary="/dev/null", report="/dev/null")


@pytest.mark.parametrize("names", [{"summary": "link"}, {"output": "link"}])
@pytest.mark.parametrize("is_hard", [False, True])
def test_the_input_is_known_through_links(tmp_path: Path, names: dict[str, str], is_hard: bool) -> None:
    (tmp_path / "in.jsonl").write_text("x\n")
    (tmp_path / "link").hardlink_to(tmp_path / "in.jsonl") if is_hard else (tmp_path / "link").symlink_to("in.jsonl")
    with pytest.raises(UsageError, match="is the input"):
        check(tmp_path, **names)


def test_an_output_that_is_not_there_yet_is_known_through_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out.jsonl")
    (tmp_path / "folder").symlink_to(".")
    with pytest.raises(UsageError, match=r"--summary .*is the output"):
        check(tmp_path, summary="link")
    with pytest.raises(UsageError, match=r"--report .*is the output"):
        check(tmp_path, report=str(tmp_path / "folder" / "out.jsonl"))


def test_the_output_named_after_the_input_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is the output"):
        check(tmp_path, output=None, is_terminal=True, summary="in.out.jsonl")
