"""Outputs for records: a locked file to which whole lines are appended, a device or pipe, or stdout."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir

from kvlite.batch.paths import PARTIAL, RESCUED, beside
from kvlite.errors import OutputError, UsageError

SYNC_EVERY_S = 2.0
_PIECE = 2**20  # bytes copied at once


@contextmanager
def writing_to(path: Path, rest: str = "") -> Iterator[None]:
    """Within the block an error of the system becomes an OutputError that names `path` and ends in `rest`.

    BrokenPipeError, the reader of a FIFO has left, stays.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror}{rest}") from error


class StdoutLines:
    """Stdout, line by line."""

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self.write = write_line

    def close(self) -> None:
        """Do nothing: no line is buffered."""


class DeviceLines:
    """A FIFO or a device, which cannot be read back, locked or repaired."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing_to(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, line: str) -> None:
        """Write one line. Raises OutputError, and BrokenPipeError when the reader has left."""
        with writing_to(self._path):
            _write_all(self._fd, f"{line}\n".encode())

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class LockedFile:
    """A regular file under a lock; it ends with a whole line after every write, also after one that failed.

    A line is with the operating system when `write` returns, and on the disk at most SYNC_EVERY_S later; `size` counts
    the bytes of the whole lines. A file that is removed, moved, cut short or written by something else meanwhile is
    noticed before the next line and at the end: OutputError, and what was removed is put back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # follows a link, so that a rewrite replaces the file and not the link
        self._fd = _open_locked(self.path, path)
        self.size = os.fstat(self._fd).st_size
        self._next_sync_s = time.monotonic() + SYNC_EVERY_S
        self._lost, self._has_partial = "", False

    def write(self, line: str) -> None:
        """Append one line; a line that cannot be written whole is removed again. Raises OutputError."""
        self._check()
        data = f"{line}\n".encode()
        with writing_to(self.path, "; its lines are whole; free some space and run it again"):
            try:
                _write_all(self._fd, data)
                self.size += len(data)
                if time.monotonic() >= self._next_sync_s:
                    self._sync()
            except BaseException:  # a signal, too, may come in the midst of a line
                self._has_partial = True
                self._drop_partial_line()
                raise

    def truncate(self, size: int) -> None:
        """Cut the file to its first `size` bytes."""
        self.size = size
        os.ftruncate(self._fd, size)

    def replace(self, lines: Iterable[bytes]) -> None:
        """Replace the content of the file by `lines`, which include their newlines, at once or not at all."""
        partial = beside(self.path, PARTIAL)
        with writing_to(partial, f"; {self.path} is unchanged"):
            partial.unlink(missing_ok=True)
            fd = _open_locked(partial, partial)  # the lock moves along with the name
            try:
                end = sum(_write_all(fd, line) for line in lines)
                os.fsync(fd)
                partial.replace(self.path)
            except OSError:
                os.close(fd)
                partial.unlink(missing_ok=True)
                raise
        os.close(self._fd)
        self._fd, self.size = fd, end

    def close(self) -> None:
        """Sync all lines to the disk and release the lock."""
        try:
            if self._lost:  # which was said
                return
            if self._has_partial:
                self._drop_partial_line()
            self._check()
            with writing_to(self.path):
                self._sync()
        finally:
            os.close(self._fd)

    def _check(self) -> None:
        """Raise OutputError where the file is no longer the one that was opened, or not as long as it was left."""
        if not self._lost:
            self._lost = self._loss()
        if self._lost:
            raise OutputError(f"{self.path} was {self._lost}")

    def _loss(self) -> str:
        """Say what happened to the file and what to do; empty where nothing did."""
        held, there = os.fstat(self._fd), None
        with writing_to(self.path), suppress(FileNotFoundError, NotADirectoryError):
            there = self.path.stat()
        if there is not None and os.path.samestat(held, there):
            if held.st_size < self.size:
                return "cut short during the run; run it again, with --repair first where its last line was cut"
            is_alone = held.st_size == self.size or self._has_partial
            return "" if is_alone else "written to by something else during the run; see to it that nothing does"
        if held.st_nlink:
            return "moved away during the run; move it back and run it again"
        return f"removed during the run; its records are in {self._put_back()} now"

    def _put_back(self) -> Path:
        """Write the content of a file that has no name any more where it was, or where there is room for it."""
        rescued = beside(self.path, RESCUED)
        for path in (self.path, rescued, Path(gettempdir()) / rescued.name):
            with suppress(OSError), path.open("xb") as file:
                for start in range(0, self.size, _PIECE):
                    file.write(os.pread(self._fd, _PIECE, start))
                return path
        raise OutputError(f"{self.path} was removed during the run, and its records cannot be written anywhere")

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._next_sync_s = time.monotonic() + SYNC_EVERY_S

    def _drop_partial_line(self) -> None:
        with suppress(OSError):  # then the next start drops it
            if os.fstat(self._fd).st_size > self.size:
                os.ftruncate(self._fd, self.size)
            self._has_partial = False


Output = StdoutLines | DeviceLines | LockedFile


def open_output(path: Path) -> LockedFile | DeviceLines:
    """Open a path for records. Raises OutputError where it cannot be written, UsageError where another run holds it."""
    with writing_to(path), suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return DeviceLines(path)
    return LockedFile(path)


def _open_locked(path: Path, shown: Path) -> int:
    while True:
        with writing_to(shown):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UsageError(f"{shown} is being written by another run; wait for it or give another -o") from None
        except OSError as error:
            os.close(fd)
            raise OutputError(f"cannot lock {shown}: {error.strerror}; give a path that can be locked") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        os.close(fd)  # the run before us replaced the file between our open and our lock


def _write_all(fd: int, data: bytes) -> int:
    written = 0
    while written < len(data):
        written += os.write(fd, data[written:])
    return written
