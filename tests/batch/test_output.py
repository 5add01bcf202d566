"""Records reach a file whole, or not at all, and only one run's."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from kvlite.batch.output import DeviceLines, LockedFile, StdoutLines, open_output
from kvlite.errors import OutputError, UsageError


def test_a_signal_in_the_midst_of_a_line_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("first")

    def interrupted(fd: int, data: bytes) -> int:
        os.write(fd, data[:3])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kvlite.batch.output._write_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.write("second")
    file.write("third")
    file.close()
    assert (tmp_path / "out").read_text() == "first\nthird\n"


def test_lines_are_there_when_write_returns(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("one")
    file.write("zwei €")
    assert (tmp_path / "out").read_bytes() == "one\nzwei €\n".encode()
    file.close()


def test_lines_are_appended(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old\n")
    file = LockedFile(tmp_path / "out")
    file.write("new")
    file.close()
    assert (tmp_path / "out").read_text() == "old\nnew\n"


def test_a_second_run_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    with pytest.raises(UsageError, match="out is being written by another run"):
        LockedFile(tmp_path / "out")
    file.replace([b"a\n"])
    with pytest.raises(UsageError, match="out is being written by another run"):
        LockedFile(tmp_path / "out")
    file.close()
    LockedFile(tmp_path / "out").close()


def test_a_replacement_is_whole_and_goes_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    file = LockedFile(tmp_path / "link")
    file.replace([b"a\n", b"b\n"])
    file.write("c")
    file.close()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "a\nb\nc\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def fills_up_after(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let every file take `room` more bytes."""
    write, left = os.write, room

    def limited(fd: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, data[:left])
        left -= written
        return written

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("room", range(12))
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    file = LockedFile(tmp_path / "out")
    fills_up_after(monkeypatch, room)
    written = []
    with pytest.raises(OutputError, match=r"cannot write to .*out: No space left"):
        for line in ("abc", "defg", "hi"):
            file.write(line)
            written.append(f"{line}\n")
    file.close()
    assert (tmp_path / "out").read_text() == "".join(written)


def test_a_replacement_that_does_not_fit_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_text("old\n")
    file = LockedFile(tmp_path / "out")
    fills_up_after(monkeypatch, 3)
    with pytest.raises(OutputError, match="unchanged"):
        file.replace([b"a\n", b"b\n"])
    file.close()
    assert (tmp_path / "out").read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_line_cut_by_an_interrupt_is_taken_back_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("whole")
    write = os.write

    def interrupted(fd: int, data: bytes) -> int:
        write(fd, data[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.write("never finished")
    file.close()
    assert (tmp_path / "out").read_text() == "whole\n"


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "out"):
        with pytest.raises(OutputError, match="cannot write to"):
            open_output(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_no_file_to_lock(tmp_path: Path) -> None:
    output = open_output(Path("/dev/full"))
    assert isinstance(output, DeviceLines)
    with pytest.raises(OutputError, match="No space left"):
        output.write("x")
    output.close()


def test_a_fifo_passes_lines_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_text()))
    reader.start()
    output = open_output(tmp_path / "fifo")
    output.write("a")
    output.close()
    reader.join(10)
    assert read == ["a\n"]


def test_stdout_takes_lines_as_they_come() -> None:
    lines: list[str] = []
    output = StdoutLines(lines.append)
    output.write("a")
    output.close()
    assert lines == ["a"]


def test_a_file_that_was_removed_is_put_back_and_the_run_stops(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("one")
    (tmp_path / "out").unlink()
    with pytest.raises(OutputError, match=r"out was removed during the run; its records are in \S+/out now"):
        file.write("two")
    with pytest.raises(OutputError, match="removed"):  # never again into a file without a name
        file.write("three")
    file.close()
    assert (tmp_path / "out").read_text() == "one\n"


def test_a_file_in_whose_place_another_was_put_is_rescued_beside_it(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("one")
    (tmp_path / "new").write_text("theirs\n")
    (tmp_path / "new").replace(tmp_path / "out")
    with pytest.raises(OutputError, match=r"out\.rescued"):
        file.close()
    assert (tmp_path / "out").read_text() == "theirs\n"
    assert (tmp_path / "out.rescued").read_text() == "one\n"


def test_a_file_whose_folder_was_removed_is_rescued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvlite.batch.output.gettempdir", lambda: str(tmp_path))
    (tmp_path / "folder").mkdir()
    file = LockedFile(tmp_path / "folder" / "out")
    file.write("one")
    (tmp_path / "folder" / "out").unlink()
    (tmp_path / "folder").rmdir()
    with pytest.raises(OutputError, match="removed"):
        file.close()
    assert (tmp_path / "out.rescued").read_text() == "one\n"


def test_a_file_that_was_moved_keeps_its_records_and_the_run_stops(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("one")
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(OutputError, match="moved away during the run; move it back"):
        file.write("two")
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert (tmp_path / "moved").read_text() == "one\n"


def test_a_file_that_was_cut_short_gets_no_further_line(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("one")
    os.truncate(tmp_path / "out", 2)
    with pytest.raises(OutputError, match="cut short during the run"):
        file.write("two")
    file.close()
    assert (tmp_path / "out").read_text() == "on"


def test_lines_of_somebody_else_are_left_and_the_run_stops(tmp_path: Path) -> None:
    file = LockedFile(tmp_path / "out")
    file.write("one")
    with (tmp_path / "out").open("a") as other:
        other.write("theirs\n")
    with pytest.raises(OutputError, match="written to by something else"):
        file.close()
    assert (tmp_path / "out").read_text() == "one\ntheirs\n"
