"""Open the input of a batch: a file or stdin, which may be compressed by gzip."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import UnsupportedOperation
from pathlib import Path
from typing import BinaryIO, cast

from kvlite.batch.paths import STDIN
from kvlite.batch.reading_order import BOM, Place
from kvlite.errors import UsageError

_GZIP = b"\x1f\x8b"


def lines_of(name: str) -> Iterator[bytes]:
    """Read the lines of a file, or of stdin, uncompressed. Raises UsageError where it cannot be read."""
    with _readable(name), _opened(name) as file:
        yield from file


def lines_at(name: str, places: Iterable[Place]) -> Iterator[tuple[int, int, bytes]]:
    """Read lines of a file that is not compressed, each with the numbers of its record and its line.

    Raises UsageError where it cannot be read.
    """
    with _readable(name), _raw(name) as file:
        for place in places:
            file.seek(place.offset)
            line = file.readline()
            yield place.index, place.line, line if place.offset else line.removeprefix(BOM)


def is_compressed(name: str) -> bool:
    """True where gzip has compressed a file. Raises UsageError where it cannot be read."""
    with _readable(name), _raw(name) as file:
        return file.read(len(_GZIP)) == _GZIP


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise UsageError(f"cannot read {name}: it ends in the middle of its gzip data") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"cannot read {name}: its gzip data are damaged: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    with _raw(name) as file:
        if not hasattr(file, "peek") or not file.peek(len(_GZIP)).startswith(_GZIP):
            yield file
            return
        with gzip.open(file, "rb") as unpacked:
            if unpacked.peek(len(_GZIP)).startswith(_GZIP):
                raise UsageError(f"cannot read {name}: it is compressed by gzip twice; unpack it once")
            yield cast(BinaryIO, unpacked)


def _raw(name: str) -> BinaryIO:
    if name != STDIN:
        return Path(name).open("rb")
    if sys.stdin is None:
        raise UsageError("stdin is closed; give a file to read")
    try:  # not sys.stdin itself: a thread that waits in it keeps the process from ending
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except UnsupportedOperation:  # a caller has replaced it
        return sys.stdin.buffer
