"""The journal finds again what it kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlite.errors import UsageError
from kvlite.evaluation.journal import Answered, Journal, QuestionResult, Result, Scored, Span

HELD = Answered(1, 20, (QuestionResult("code", 9, True, 0.5, False, "17", True, "It is 17."),))


@pytest.mark.parametrize("result", [HELD, Answered(1, 20, ()), Scored(1, 20, (Span(0, 64, 9, 0.5, 0.1, 8),))])
def test_a_result_is_found_again_and_only_under_its_own_unit(tmp_path: Path, result: Result) -> None:
    Journal(tmp_path / "j").keep({"n": 1}, result)
    assert Journal(tmp_path / "j").find({"n": 1}) == result
    assert Journal(tmp_path / "j").find({"n": 2}) is None


def test_what_is_no_file_is_no_journal() -> None:
    with pytest.raises(UsageError, match="no file that can be gone on with"):
        Journal(Path("/dev/full"))


def test_a_line_cut_short_is_ignored_and_gone_on_behind(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path).keep({"n": 1}, HELD)
    with path.open("a") as file:
        file.write('{"unit": {"n"')
    Journal(path).keep({"n": 2}, HELD)
    assert [Journal(path).find({"n": n}) for n in (1, 2)] == [HELD, HELD]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("poem\n")
    with pytest.raises(UsageError, match="line 1 is no result"):
        Journal(tmp_path / "j")
