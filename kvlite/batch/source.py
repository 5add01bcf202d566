"""Read entries from JSON lines, plain lines or CSV as a stream, and select those that this run takes.

No file is held in memory as a whole; only the hashes of ids stay.
"""

from __future__ import annotations

import csv
import errno
import os
import re
import sys
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b, sha256
from io import UnsupportedOperation
from itertools import chain, islice
from pathlib import Path
from typing import Self

from kvlite.batch.codecs import decode_line, decode_simple, repeated
from kvlite.batch.item import BadLine, Code, Entry, Form, Item, LineError, Place, digest
from kvlite.batch.values import utf8
from kvlite.errors import UsageError

STDIN = "-"

_BOM = b"\xef\xbb\xbf"
_LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit of 131,072 is shorter than a long prompt
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class Layout(StrEnum):
    """The layout of a file; `openai` and `simple` are JSON lines of that one form."""

    AUTO = "auto"
    OPENAI = "openai"
    SIMPLE = "simple"
    TEXT = "text"
    CSV = "csv"

    @classmethod
    def of(cls, name: str) -> Layout:
        """Tell the layout from a file's name: .csv, .txt, else JSON lines."""
        return {".csv": cls.CSV, ".txt": cls.TEXT}.get(Path(name).suffix.lower(), cls.AUTO)


@dataclass(frozen=True, slots=True)
class Reader:
    """Settings for reading a file: layout, escapes such as `\\n` in plain lines, and the CSV column of the prompt."""

    layout: Layout = Layout.AUTO
    escape: bool = False
    prompt_column: str = "prompt"

    def entries(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        """Read the entries of a file's lines. Raises UsageError where a CSV file cannot be read as one."""
        lines = (line if number else line.removeprefix(_BOM) for number, line in enumerate(lines))
        return self._rows(lines) if self.layout is Layout.CSV else self._lines(lines)

    def _lines(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        only = Form(self.layout) if self.layout in (Layout.OPENAI, Layout.SIMPLE) else None
        filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for index, (number, line) in enumerate(filled):
            place = Place(index, number)
            yield self._plain(line, place) if self.layout is Layout.TEXT else decode_line(line, place, only)

    def _plain(self, line: bytes, place: Place) -> Entry:
        key = f"line-{place.line}"
        try:
            prompt = utf8(line.rstrip(b"\r\n"))
        except LineError as refused:
            return BadLine(place, key, Form.SIMPLE, refused.failure)
        if self.escape:  # any other backslash stays
            prompt = re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], prompt)
        return Item(place, key, Form.SIMPLE, prompt=prompt)

    def _rows(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        csv.field_size_limit(_LONGEST_CELL)
        rows = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)
        try:
            header = next(rows, [])
            if header and self.prompt_column not in header:
                raise UsageError(f"no column {self.prompt_column!r}; columns are {', '.join(header)} (--prompt-column)")
            line, index = rows.line_num + 1, 0
            for row in rows:
                if row:
                    yield self._row(header, row, Place(index, line))
                    index += 1
                line = rows.line_num + 1
        except csv.Error as error:
            raise UsageError(f"line {rows.line_num} is not CSV: {error}; quote cells that hold quotes") from None

    def _row(self, header: list[str], row: list[str], place: Place) -> Entry:
        cells = dict(zip(header, row, strict=False))
        key = cells.pop("id", "") or f"line-{place.line}"
        value: dict[str, object] = {"prompt": cells.pop(self.prompt_column, None)}
        if system := cells.pop("system", ""):
            value["system"] = system
        try:
            if len(row) != len(header):
                raise LineError(f"the row has {len(row)} cells under {len(header)} columns")
            if any(not cell.isascii() and _is_not_utf8(cell) for cell in row):
                raise LineError("not UTF-8")
            return decode_simple(value, Item(place, key, Form.SIMPLE, metadata=cells or None))
        except LineError as refused:
            key = key if not _is_not_utf8(key) else f"line-{place.line}"
            return BadLine(place, key, Form.SIMPLE, refused.failure)


def with_unique_ids(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Turn entries that repeat an id into bad lines: a pipe is read only once, so they are found on the way."""
    first_lines: dict[bytes, int] = {}
    for entry in entries:
        first = first_lines.setdefault(digest(entry.key), entry.place.line)
        yield entry if first == entry.place.line else repeated(entry, first)


@dataclass(frozen=True, slots=True)
class Shard:
    """The share `index` of `count` (from 1) of the ids; an id always falls into the same one."""

    index: int
    count: int

    @classmethod
    def parse(cls, written: str) -> Self:
        """Read `I/N`. Raises UsageError."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", written, re.ASCII)
        index, count = (int(number) for number in match.groups()) if match else (0, 0)
        if not 1 <= index <= count:
            raise UsageError(f"shard {written!r} is not I/N; give 1/4 for the first of four")
        return cls(index, count)

    def holds(self, key: str) -> bool:
        """True where an id belongs to this share."""
        hashed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
        return hashed % self.count == self.index - 1


@dataclass(frozen=True, slots=True)
class Selection:
    """The entries to take: of the shard, after the first `skip`, at most `limit`."""

    shard: Shard = Shard(1, 1)
    skip: int = 0
    limit: int | None = None

    def of(self, entries: Iterable[Entry], done: Container[bytes] = ()) -> Iterator[Entry]:
        """Select the entries to run, in order; those in `done` are left out but count towards the limit."""
        shard = (entry for entry in entries if self.shard.holds(entry.key))
        stop = None if self.limit is None else self.skip + self.limit
        return (entry for entry in islice(shard, self.skip, stop) if entry.mark not in done)


@dataclass(frozen=True, slots=True)
class Survey:
    """Facts about an input before it is answered, and its entries; `total` counts those selected.

    `model` is the first that a line names; of a pipe, which is read only once, the one that its first item names.
    """

    entries: Iterator[Entry]
    model: str | None
    total: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """A file or a pipe, with its reader and the selection of its entries; `-` is stdin."""

    name: str
    reader: Reader = field(default_factory=Reader)
    selection: Selection = field(default_factory=Selection)

    @property
    def is_pipe(self) -> bool:
        """True where it can be read only once."""
        return self.name == STDIN or not Path(self.name).is_file()

    def survey(self) -> Survey:
        """Read a whole file once, of a pipe only the first item.

        Raises UsageError where there is no such file, and, naming both lines, where two of a file have one id.
        """
        if not self.is_pipe:
            return self._survey_file()
        if self.name != STDIN and not Path(self.name).exists():
            raise UsageError(f"cannot read {self.name}: {os.strerror(errno.ENOENT)}")
        entries, read = with_unique_ids(self.entries()), list[Entry]()
        for entry in entries:
            read.append(entry)
            if isinstance(entry, Item):
                return Survey(chain(read, entries), entry.model)
        return Survey(iter(read), None)

    def entries(self) -> Iterator[Entry]:
        """Read all entries. Raises UsageError where the input cannot be read."""
        return self.reader.entries(self._lines())

    def _survey_file(self) -> Survey:
        hashed, model = sha256(), None

        def hashing() -> Iterator[bytes]:
            for line in self._lines():
                hashed.update(line)
                yield line

        def checked() -> Iterator[Entry]:
            nonlocal model
            for entry in with_unique_ids(self.reader.entries(hashing())):
                if isinstance(entry, Item):
                    model = entry.model if model is None else model
                elif entry.failure.code is Code.DUPLICATE:
                    raise UsageError(entry.failure.message)
                yield entry

        unread = checked()
        total = sum(1 for _ in self.selection.of(unread))
        deque(unread, maxlen=0)  # a limit ends the selection early, but not the search for repeated ids
        return Survey(self.entries(), model, total, hashed.hexdigest())

    def _lines(self) -> Iterator[bytes]:
        try:
            if self.name != STDIN:
                with Path(self.name).open("rb") as file:
                    yield from file
            elif sys.stdin is None:
                raise UsageError("stdin is closed; give a file to read")
            else:
                yield from _stdin()
        except OSError as error:
            raise UsageError(f"cannot read {self.name}: {error.strerror}") from error


def _stdin() -> Iterator[bytes]:
    """Read the lines of stdin, but not through sys.stdin: a thread that waits in it keeps the process from ending."""
    try:
        descriptor = sys.stdin.fileno()
    except UnsupportedOperation:  # a caller has replaced sys.stdin
        yield from sys.stdin.buffer
        return
    with open(descriptor, "rb", closefd=False) as file:
        yield from file


def _is_not_utf8(decoded: str) -> bool:
    try:
        decoded.encode()
    except UnicodeEncodeError:
        return True
    return False
