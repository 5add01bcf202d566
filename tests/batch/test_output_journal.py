"""The output file knows what is done, whatever byte a crash cut it at."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvlite.batch.item import Code, Failure, Form, Item, Outcome, digest, duplicate_mark
from kvlite.batch.output import LockedFile
from kvlite.batch.output_journal import OutputJournal
from kvlite.batch.records import record_line
from kvlite.errors import OutputError, UsageError

META: dict[str, Any] = {
    "input_sha256": "hash",
    "model": "org/m@sha",
    "params": {"kv_policy": "window", "max_tokens": 5},
    "version": "0.1.0",
}


def record(key: str, code: Code | None = None, form: Form = "simple") -> str:
    failure = Failure(code, "no") if code else None
    entry = Item(0, 9, key, form, failure) if failure else Item(0, 9, key, form, prompt="x")
    return record_line(Outcome(entry, failure=failure), form, "m")


RECORDS = [record("a"), record("b", Code.TIMEOUT), record("ü"), record("c", Code.TIMEOUT, "openai")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "out.jsonl"
    path.write_text("".join(f"{line}\n" for line in RECORDS))
    return path


@pytest.fixture
def file(path: Path) -> Iterator[LockedFile]:
    file = LockedFile(path)
    yield file
    file.close()


def test_every_line_with_its_record_is_done(file: LockedFile) -> None:
    done = OutputJournal(file).done()
    assert done.marks == {digest(key) for key in ("a", "b", "ü", "c")}
    assert (done.ok, done.failed) == (2, 2)


def test_a_duplicate_is_not_the_line_whose_id_it_repeats(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    file.write(record("a", Code.DUPLICATE))
    assert OutputJournal(file).done().marks == {duplicate_mark("a", 9)}
    file.close()


def test_a_line_torn_at_any_byte_is_moved_aside(tmp_path: Path) -> None:
    whole = "".join(f"{line}\n" for line in RECORDS).encode()
    path, torn_copy = tmp_path / "out.jsonl", tmp_path / "out.jsonl.torn"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        torn_copy.unlink(missing_ok=True)
        kept = whole[: whole[:size].rfind(b"\n") + 1]
        file = LockedFile(path)
        assert OutputJournal(file).drop_torn_line() == size - len(kept)
        assert OutputJournal(file).done().ok + OutputJournal(file).done().failed == kept.count(b"\n")
        file.write(RECORDS[0])
        file.close()
        assert path.read_bytes() == kept + RECORDS[0].encode() + b"\n"
        assert (torn_copy.read_bytes() if torn_copy.exists() else b"") == (whole[len(kept) : size] + b"\n") * (
            size > len(kept)
        )


def test_a_torn_line_longer_than_a_block_is_found_and_nothing_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"whole\n" * 100_000 + b"x" * 200_000)
    file = LockedFile(path)
    read = []

    class Counted(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(super().read(size))
            return read[-1]

        def __next__(self) -> bytes:
            read.append(super().__next__())
            return read[-1]

    def opened(held: Path, mode: str = "r", **options: Any) -> Any:
        return Counted(io.FileIO(held)) if mode == "rb" else open(held, mode, **options)  # noqa: PTH123

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        assert OutputJournal(file).drop_torn_line() == 200_000
    file.close()
    assert sum(map(len, read)) < 500_000
    assert path.read_bytes() == b"whole\n" * 100_000


def test_failed_records_are_taken_out_and_the_others_stay_as_they_are(path: Path, file: LockedFile) -> None:
    kept = OutputJournal(file).set_failed_aside()
    assert list(kept.set_aside.values()) == [RECORDS[1], RECORDS[3]] and (kept.ok, kept.failed) == (2, 0)
    assert kept.marks == {digest("a"), digest("ü")} == OutputJournal(file).done().marks
    assert path.read_text() == f"{RECORDS[0]}\n{RECORDS[2]}\n"
    assert OutputJournal(file).set_failed_aside().set_aside == {}


def test_a_file_that_is_no_batch_output_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    file = LockedFile(path)
    with pytest.raises(UsageError, match=r"notes.txt line 1 is no batch record"):
        OutputJournal(file).done()
    file.close()
    assert path.read_text() == "my notes\n"


def test_the_sidecar_is_one_line_that_says_what_records_are_made_with(path: Path, file: LockedFile) -> None:
    OutputJournal(file).keep(META)
    (line,) = path.with_name("out.jsonl.kvlite-meta.json").read_text().splitlines()
    assert json.loads(line) == META


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"params": {"kv_policy": "h2o", "max_tokens": 5}}, "with kv_policy window, not h2o"),
    ({"params": {"kv_policy": "window"}}, "with max_tokens 5, not unset"),
    ({"model": "org/m@other"}, "with model org/m@sha, not org/m@other"),
    ({"input_sha256": "other"}, "from other input"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_other_settings_are_refused_with_the_ways_out(file: LockedFile, change: dict[str, Any], said: str) -> None:
    journal = OutputJournal(file)
    journal.keep(META)
    journal.check(META)
    with pytest.raises(UsageError, match=rf"was written {said}; --overwrite .* --force-resume"):
        journal.check(META | change)


@pytest.mark.parametrize("change", [{"version": "9"}, {"input_sha256": None}])
def test_another_version_and_a_pipe_may_go_on(file: LockedFile, change: dict[str, Any]) -> None:
    journal = OutputJournal(file)
    journal.keep(META)
    journal.check(META | change)


@pytest.mark.parametrize("content", [None, "", "[]", "{", "\udcff"])
def test_records_without_a_readable_sidecar_are_refused(path: Path, file: LockedFile, content: str | None) -> None:
    if content is not None:
        path.with_name("out.jsonl.kvlite-meta.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match="no readable"):
        OutputJournal(file).check(META)


def test_starting_over_forgets_records_and_settings(path: Path, file: LockedFile) -> None:
    journal = OutputJournal(file)
    journal.keep(META)
    journal.start_over()
    assert path.read_text() == ""
    journal.check(META | {"model": "other"})
    assert journal.done().marks == set()


def test_a_sidecar_that_cannot_be_written_says_so(path: Path, file: LockedFile) -> None:
    path.with_name("out.jsonl.kvlite-meta.json.partial").mkdir()
    with pytest.raises(OutputError, match="kvlite-meta"):
        OutputJournal(file).keep(META)


def test_what_finds_no_room_beside_the_output_names_its_file_and_leaves_no_part(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(f"{RECORDS[0]}\n{{")
    file = LockedFile(path)
    opened = Path.open

    def open_full(held: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "r" or mode == "rb":
            return opened(held, mode, **options)
        opened(held, mode, **options).close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OutputError, match=r"cannot write to .*out\.jsonl\.torn: No space left"):
        OutputJournal(file).drop_torn_line()
    with pytest.raises(OutputError, match=r"kvlite-meta\.json: No space left"):
        OutputJournal(file).keep(META)
    file.close()
    assert path.read_text().endswith("{")
    assert not list(path.parent.glob("*.partial"))


def test_a_second_record_of_a_line_is_refused_with_the_way_out(path: Path) -> None:
    path.write_text("".join(f"{line}\n" for line in [*RECORDS, RECORDS[2]]))
    file = LockedFile(path)
    with pytest.raises(UsageError, match=r"line 5 is another record .* kvlite batch --repair .*out.jsonl, or give"):
        OutputJournal(file).done()
    file.close()
