"""Read items from JSON lines, plain lines or tables as a stream, and select those that this run takes.

No file is held in memory as a whole; only the hashes of ids stay.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from itertools import chain, islice
from pathlib import Path

from kvlite.batch.codecs import decode_line
from kvlite.batch.file_kind import refuse_other_kinds
from kvlite.batch.ids import NAMED, with_unique_ids
from kvlite.batch.item import Code, Form, Item, LineError
from kvlite.batch.opening import is_compressed, lines_at, lines_of
from kvlite.batch.paths import STDIN, unpacked_name
from kvlite.batch.reading_order import BOM, ReadingOrder
from kvlite.batch.tables import DELIMITERS, count_parquet_rows, parquet_rows, text_rows
from kvlite.batch.values import utf8
from kvlite.batch.waiting import AHEAD
from kvlite.errors import UsageError
from kvlite.options import BatchOptions

SURVEYED_BYTES = (
    2**22
)  # a longer file is checked as it is read, so that the first answer does not wait for the last line

_LAYOUTS = {".csv": "csv", ".tsv": "tsv", ".txt": "text", ".parquet": "parquet"}  # others are JSON lines
_COMPRESSED = 8  # a compressed file holds about so many times its bytes
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Survey:
    """Facts about an input before it is answered, and its items; `total` counts those selected.

    `model` is the first that a line names; of a pipe, which is read only once, the one that its first item names.
    """

    items: Iterator[Item]
    model: str | None
    total: int | None = None
    sha256: str | None = None


class Input:
    """A file or a pipe, read as the options of a batch say, and the selection of its items. Raises UsageError."""

    def __init__(self, options: BatchOptions) -> None:
        self.name = options.input
        is_told = options.format != "auto"
        self.layout = options.format if is_told else _LAYOUTS.get(Path(unpacked_name(self.name)).suffix.lower(), "auto")
        self.setting_columns: list[str] = []
        """The columns of a table that are settings of their rows, known once its first row is."""
        self.num_done = self.num_passed = 0
        """Lines read by `select` that were done already: those selected, and all."""
        self._options = options
        self._shard = parse_shard(options.shard or "1/1")
        self._taken = slice(options.skip, None if options.limit is None else options.skip + options.limit)
        self._order: ReadingOrder | None = None  # where lines that begin alike stand far apart

    @property
    def is_pipe(self) -> bool:
        """True where it can be read only once."""
        try:
            return self.name == STDIN or not Path(self.name).is_file()
        except OSError as error:  # the name is too long
            raise UsageError(f"cannot read {self.name}: {error.strerror}") from None

    def select(self, items: Iterable[Item], done: Container[bytes] = ()) -> Iterator[Item]:
        """Select the items to run, in order; those in `done` are left out but count towards the limit."""
        shard = (item for item in self._counting(items, done) if in_shard(item.key, *self._shard))
        for item in islice(shard, self._taken.start, self._taken.stop):
            if item.mark in done:
                self.num_done += 1
            else:
                yield item

    def _counting(self, items: Iterable[Item], done: Container[bytes]) -> Iterator[Item]:
        for item in items:
            self.num_passed += item.mark in done
            yield item

    def survey(self) -> Survey:
        """Look at the input: read a file that is not long once, of a long one count the lines, of a pipe none.

        Raises UsageError where there is no such file, and, naming both lines, where two of a short one have one id.
        """
        is_parquet = self.layout == "parquet"
        if self.is_pipe:
            if is_parquet:
                raise UsageError("Parquet is read from its end; give a file, not a pipe")
            if self.name != STDIN and not Path(self.name).exists():
                raise UsageError(f"cannot read {self.name}: {os.strerror(errno.ENOENT)}")
            return self._begun(None, None)
        factor = 1 if unpacked_name(self.name) == self.name else _COMPRESSED
        if Path(self.name).stat().st_size * factor <= SURVEYED_BYTES:
            return self._survey_file()
        hashed, num_lines = sha256(), 0
        for line in self._noted(lines_of(self.name)):
            hashed.update(line)
            num_lines += not line.isspace()
        if is_parquet:
            num_lines = count_parquet_rows(Path(self.name))
        is_counted = self.layout not in DELIMITERS and self._shard == (1, 1)
        return self._begun(len(range(num_lines)[self._taken]) if is_counted else None, hashed.hexdigest())

    def _begun(self, total: int | None, sha256: str | None) -> Survey:
        """The survey of an input whose items are checked as they come, by its first that can be read."""
        items, read = with_unique_ids(self.items()), list[Item]()
        for item in items:
            read.append(item)
            if item.failure is None:
                return Survey(chain(read, items), item.model, total, sha256)
            if len(read) > NAMED:  # of a file that is something else
                break
        return Survey(chain(read, items), None, total, sha256)

    def items(self) -> Iterator[Item]:
        """Read all items. Raises UsageError where the input cannot be read."""
        if self.layout == "parquet":
            return parquet_rows(Path(self.name), self._options.prompt_column, self._has_settings)
        lines = lines_of(self.name)
        if self._order is None:
            return self.read(lines)
        self._refuse_other_kinds(next(lines, b""))
        return self._decoded(lines_at(self.name, self._order.places()))

    def _noted(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Pass the lines of a file through; in the end an order is known to read them in, if another one is better.

        Where records keep the order of the input, or lines are counted off, it is that of the file.
        """
        options = self._options
        in_order = options.ordered or options.out_format == "text" or options.skip or options.limit is not None
        may_order = options.prefix_cache and not in_order and self.layout not in ("parquet", *DELIMITERS)
        if not may_order or is_compressed(self.name):
            yield from lines
            return
        order = ReadingOrder(is_json=self.layout != "text")
        for line in lines:
            order.add(line)
            yield line
        if order.sort(AHEAD * self._shard[1]):
            self._order = order

    def _has_settings(self, columns: list[str]) -> None:
        self.setting_columns = columns

    def read(self, lines: Iterable[bytes]) -> Iterator[Item]:
        """Read the items of a file's lines. Raises UsageError where it is no such file as a whole."""
        lines = iter(lines)
        first = next(lines, b"")
        self._refuse_other_kinds(first)
        lines = chain([first.removeprefix(BOM)], lines)
        if self.layout in DELIMITERS:
            yield from text_rows(lines, self.layout, self._options.prompt_column, self._has_settings)
            return
        filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        yield from self._decoded((index, number, line) for index, (number, line) in enumerate(filled))

    def _refuse_other_kinds(self, first: bytes) -> None:
        refuse_other_kinds(first, self.name, is_json=self.layout not in ("text", *DELIMITERS))

    def _decoded(self, lines: Iterable[tuple[int, int, bytes]]) -> Iterator[Item]:
        """The items of lines, each with the numbers of its record and of its line."""
        form: Form = "simple"  # of the line before, which a line that cannot be read has too
        for index, number, line in lines:
            item = Item(index, number, f"line-{number}", form)
            item = self._plain(line, item) if self.layout == "text" else decode_line(line, item, self.layout)
            form = item.form
            yield item

    def _survey_file(self) -> Survey:
        hashed, model, num_in_shard = sha256(), None, 0

        def hashing() -> Iterator[bytes]:
            for line in self._noted(lines_of(self.name)):
                hashed.update(line)
                yield line

        items = self.read(hashing())
        if self.layout == "parquet":
            deque(hashing(), maxlen=0)
            items = self.items()
        for item in with_unique_ids(items):
            if item.failure is None:
                model = item.model if model is None else model
            elif item.failure.code is Code.DUPLICATE:
                raise UsageError(item.failure.message)
            num_in_shard += in_shard(item.key, *self._shard)
        return Survey(self.items(), model, len(range(num_in_shard)[self._taken]), hashed.hexdigest())

    def _plain(self, line: bytes, item: Item) -> Item:
        try:
            prompt = utf8(line.rstrip(b"\r\n"))
        except LineError as refused:
            return replace(item, failure=refused.failure)
        if self._options.escape:  # any other backslash stays
            prompt = re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], prompt)
        return replace(item, prompt=prompt)


def parse_shard(written: str) -> tuple[int, int]:
    """Read `I/N`, the share I of N. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", written, re.ASCII)
    index, count = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(f"shard {written!r} is not I/N; give 1/4 for the first of four")
    return index, count


def in_shard(key: str, index: int, count: int) -> bool:
    """True where an id belongs to the share `index` of `count` (from 1); it always falls into the same one."""
    hashed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
    return hashed % count == index - 1
