"""A damaged output file keeps its whole records, and what is dropped is kept aside and said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch.output import LockedFile
from kvlite.batch.repair import repair
from kvlite.console import Console
from kvlite.errors import UsageError


def record(key: str, text: str = "x", error: object = None, **more: object) -> bytes:
    return json.dumps({"id": key, "index": 0, "text": text, **more, "error": error}).encode()


def openai(key: str) -> bytes:
    return json.dumps({"id": "batch_req_1", "custom_id": key, "response": {"body": {}}, "error": None}).encode()


def repaired(path: Path, *lines: bytes) -> tuple[list[bytes], str]:
    path.write_bytes(b"\n".join(lines))
    said = io.StringIO()
    repair(str(path), Console(stderr=said))
    return path.read_bytes().splitlines(), said.getvalue()


def test_a_whole_file_is_left_as_it_is(tmp_path: Path) -> None:
    kept, said = repaired(tmp_path / "out", record("a"), openai("b"), b"")
    assert kept == [record("a"), openai("b")]
    assert "all 2 records are whole" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_record_is_moved_aside_and_counted(tmp_path: Path) -> None:
    glued = record("b")[:20] + record("c") + record("d")
    kept, said = repaired(tmp_path / "out", record("a"), glued, b"\0\0\0" + openai("e"), b"# mine", record("f")[:9])
    assert kept == [record("a"), record("c"), record("d"), openai("e")]
    assert "4 records kept; 4 pieces that are no records moved to out.torn" in said
    assert (tmp_path / "out.torn").read_bytes().splitlines() == [
        record("b")[:20], b"\0\0\0", b"# mine", record("f")[:9]
    ]  # fmt: skip


def test_of_records_of_one_line_the_answer_stays(tmp_path: Path) -> None:
    failed = record("a", error={"code": "timeout"})
    kept, said = repaired(tmp_path / "out", failed, record("a"), record("a", "later"), b"")
    assert kept == [record("a")]
    assert "2 further records of the same lines dropped" in said


def test_a_last_record_without_its_newline_is_whole(tmp_path: Path) -> None:
    repaired(tmp_path / "out", record("a"), record("b"))
    assert (tmp_path / "out").read_bytes() == record("a") + b"\n" + record("b") + b"\n"


def test_a_file_in_use_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such output file"):
        repair(str(tmp_path / "out"), Console())
    held = LockedFile(tmp_path / "out")
    with pytest.raises(UsageError, match="another run"):
        repair(str(tmp_path / "out"), Console())
    held.close()


texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20) | st.just('{"id": "z", "index": 0}')


@given(st.lists(texts, min_size=1, max_size=8), st.data())
def test_a_cut_anywhere_costs_at_most_the_records_it_goes_through(
    tmp_path_factory: pytest.TempPathFactory, answers: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "out"
    records = [record(f"k{number}", text, metadata={"id": text}) for number, text in enumerate(answers)]
    whole = b"".join(one + b"\n" for one in records)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    ends = [sum(len(one) + 1 for one in records[: number + 1]) for number in range(len(records))]
    untouched = [one for one, stop in zip(records, ends, strict=True) if stop <= start or stop - len(one) - 1 >= end]
    try:
        kept, _ = repaired(path, whole[:start] + whole[end:])
    except UsageError:  # there is none
        kept = []
    assert set(untouched) <= set(kept)


@pytest.mark.parametrize(
    "damaged",
    [
        record("a") + record("b") + b"\n" + record("c") + b"\n",
        record("a") + b"\n\n" + record("b") + b"\n \n" + record("c") + b"\n",
        record("a") + b"\r\n" + record("b") + b"\n" + record("c"),
    ],
    ids=["glued", "blank lines", "other line ends"],
)
def test_whole_records_that_stand_wrong_stand_on_lines_of_their_own(tmp_path: Path, damaged: bytes) -> None:
    kept, said = repaired(tmp_path / "out", damaged)
    assert (tmp_path / "out").read_bytes() == b"".join(record(key) + b"\n" for key in "abc")
    assert len(kept) == 3 and "3 records kept" in said


@pytest.mark.parametrize("alien", [b'{"id":"a","prompt":"Hi"}\n', b"notes\n", record("a").decode().encode("utf-16")])
def test_a_file_without_a_record_is_refused_and_stays(tmp_path: Path, alien: bytes) -> None:
    with pytest.raises(UsageError, match="holds no record"):
        repaired(tmp_path / "out", alien)
    assert (tmp_path / "out").read_bytes() == alien
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
