"""The only writer: stdout is the answer, stderr is everything else. Loads no torch.

Whatever reaches a terminal has lost its control characters, and so has all of stderr; stdout into a pipe or a file is
passed on byte for byte.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from textwrap import fill
from typing import TYPE_CHECKING, Literal, TextIO

from kvlite.errors import OutputError, UsageError
from kvlite.flags import option

if TYPE_CHECKING:
    from kvlite.record.table import Table

ProgressStyle = Literal["auto", "bar", "lines", "none"]

PROGRESS_LINE_EVERY_S = 5.0
PROGRESS_DRAW_EVERY_S = 0.1

# C0 but tab and newline, DEL, C1, bidirectional embeddings, overrides and isolates, lone surrogates
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_ERASE_LINE = "\r\x1b[K"
_DIM, _YELLOW, _RED, _BOLD = "2", "33", "31", "1"


def strip_controls(text: str) -> str:
    """`text` without the characters that could steer a terminal or reorder what is read; tabs and newlines stay."""
    return _UNSAFE.sub("", text)


@dataclass(kw_only=True, eq=False)
class Console:
    """Writes answers to stdout and the rest to stderr, as the program's flags ask.

    `as_json` is for commands to read. A stream is None where the caller closed the descriptor.
    `on_warning` is told of every warning too: a run record keeps them. `around` wraps the writing of a line to stderr,
    so that a line which a user edits can be moved out of the way.
    """

    quiet: bool = option(False, "-q", help="Only the answer, or one id per line.")
    verbose: bool = option(False, "-v", help="Say more on stderr; show tracebacks.")
    color: Literal["auto", "always", "never"] = option("auto", help="When to colour the output.")
    plain: bool = option(False, help="No colour, no moving lines.")
    as_json: bool = option(False, "--json", help="Machine-readable output on stdout.")
    stdout: TextIO | None = field(default_factory=lambda: sys.stdout)
    stderr: TextIO | None = field(default_factory=lambda: sys.stderr)
    on_warning: Callable[[str], None] = lambda text: None
    around: Callable[[Callable[[], None]], None] = lambda write: write()
    _status: str = field(default="", init=False)

    @property
    def is_terminal(self) -> bool:
        """True if stdout is a terminal."""
        return is_terminal(self.stdout)

    @property
    def width(self) -> int | None:
        """Columns of the terminal that stdout is; None where it is none, and lines may be of any length."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    @property
    def has_color(self) -> bool:
        """True where stdout may be coloured."""
        return self._has_color(self.stdout)

    @property
    def has_live_stderr(self) -> bool:
        """True if stderr is a terminal on which lines may be redrawn."""
        return is_terminal(self.stderr) and not self.plain and os.environ.get("TERM") != "dumb"

    def answer(self, text: str) -> None:
        """Write `text` to stdout at once, as it is. Raises OutputError when stdout cannot take it."""
        if self.stdout is None:
            raise OutputError("stdout is closed; give the answer somewhere to go")
        self._hide_status()
        try:
            self.stdout.write(strip_controls(text) if self.is_terminal else _SURROGATES.sub("\ufffd", text))
            self.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to stdout: {error.strerror}") from error

    def draw(self, text: str) -> None:
        """Write to a terminal what is drawn, escape codes and all; its words have lost their control characters."""
        self._hide_status()
        self._raw(self.stdout, text)

    def line(self, text: str = "") -> None:
        """Write one line to stdout."""
        self.answer(f"{text}\n")

    def json(self, value: object, *, indent: int | None = None) -> None:
        """Write `value` as JSON to stdout: one line, or indented."""
        self.line(json.dumps(value, ensure_ascii=False, indent=indent))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write aligned columns to stdout; just the header when there are no rows."""
        from kvlite.record.table import width_of

        cells = [[strip_controls(cell).replace("\n", " ") for cell in row] for row in (columns, *rows)]
        widths = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell + " " * (width - width_of(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        if self._has_color(self.stdout):  # answer() would strip the escape codes from a terminal
            self.answer("")
            self._raw(self.stdout, f"\x1b[{_BOLD}m{lines.pop(0)}\x1b[0m\n")
        for text in lines:
            self.line(text)

    def show(self, table: Table) -> None:
        """Write a table to stdout in pieces that fit the terminal, its note below."""
        for number, piece in enumerate(table.pieces(self.width)):
            if number:
                self.line()
            self.table(piece.columns, piece.rows)
        if table.note:
            self.line(table.note)

    def paragraph(self, text: str) -> None:
        """Write sentences to stdout, in lines that fit the terminal."""
        width = self.width
        self.line(text if width is None else fill(text, width, break_long_words=False, break_on_hyphens=False))

    def note(self, text: str) -> None:
        """Say something useful on stderr, unless quiet."""
        if not self.quiet:
            self._say(text, _DIM)

    def detail(self, text: str) -> None:
        """Say something on stderr that only `-v` shows."""
        if self.verbose:
            self._say(text, _DIM)

    def warn(self, text: str) -> None:
        """Say on stderr that something is not as it should be, quiet or not."""
        self._say(f"kvlite: warning: {_one_line(text)}", _YELLOW)
        self.on_warning(text)

    def error(self, error: BaseException | str) -> None:
        """Say in one line on stderr what went wrong, quiet or not."""
        self._say(f"kvlite: {_one_line(str(error))}", _RED)

    def tell(self, text: str) -> None:
        """Say on stderr what was asked for, quiet or not."""
        self._say(text, _DIM)

    def aside(self, text: str) -> None:
        """Stream `text` to stderr as it comes, without a line break: a model's thinking."""
        self._say(text, _DIM, end="")

    def confirm(self, question: str) -> bool:
        """Ask on stderr and read yes or no from a terminal. Raises UsageError when nobody is there to ask."""
        if not is_terminal(sys.stdin):
            raise UsageError(f"{_one_line(question)} Nobody can answer here; give -y to say yes")
        self._hide_status()
        self._raw(self.stderr, f"{_one_line(strip_controls(question))} [y/N] ")
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    @contextmanager
    def progress(self, style: ProgressStyle = "auto") -> Iterator[Callable[[str], None]]:
        """A function that shows a text on stderr, no more often than a reader can follow.

        In a status line redrawn in place (`bar`), in lines now and then (`lines`), or not at all; `auto` is `bar` on a
        terminal and `lines` elsewhere. A quiet console shows none.
        """
        if style == "auto":
            style = "bar" if self.has_live_stderr else "lines"
        every_s = PROGRESS_DRAW_EVERY_S if style == "bar" else PROGRESS_LINE_EVERY_S
        next_s = 0.0 if style == "bar" else time.monotonic() + every_s

        def update(text: str) -> None:
            nonlocal next_s
            if not self.quiet and style != "none" and time.monotonic() >= next_s:
                next_s = time.monotonic() + every_s
                (self.show_status if style == "bar" else self.note)(text)

        try:
            yield update
        finally:
            self._hide_status()

    def show_status(self, text: str) -> None:
        """Draw `text` on the last line of the terminal, over the status before it."""
        width = shutil.get_terminal_size().columns - 1
        self._status = _one_line(strip_controls(text))[:width]
        self._raw(self.stderr, _ERASE_LINE + self._status)

    def _hide_status(self) -> None:
        if self._status:
            self._raw(self.stderr, _ERASE_LINE)
            self._status = ""

    def _say(self, text: str, style: str, end: str = "\n") -> None:
        text = strip_controls(text)
        if end and is_terminal(self.stderr):
            width = shutil.get_terminal_size().columns
            text = "\n".join(_fitted(line, width) for line in text.split("\n"))
        if text and self._has_color(self.stderr):
            text = f"\x1b[{style}m{text}\x1b[0m"
        self.around(lambda: self._write_stderr(text, end))

    def _write_stderr(self, text: str, end: str) -> None:
        status = self._status
        self._hide_status()
        self._raw(self.stderr, text + end)
        if status and end:
            self.show_status(status)

    def _has_color(self, stream: TextIO | None) -> bool:
        if self.color != "auto" or self.plain:
            return self.color == "always" and not self.plain
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR"):
            return True
        return is_terminal(stream) and os.environ.get("TERM") != "dumb"

    @staticmethod
    def _raw(stream: TextIO | None, text: str) -> None:
        if stream is not None:
            with suppress(OSError):  # nobody listens, and there is nowhere left to say so
                stream.write(text)
                stream.flush()


def is_terminal(stream: TextIO | None) -> bool:
    """True where somebody is there to type, or to read as it comes."""
    return stream is not None and not stream.closed and stream.isatty()


def _fitted(line: str, width: int) -> str:
    """Break a line between words where it is longer than the terminal is wide."""
    return line if len(line) <= width else fill(line, width, break_long_words=False, break_on_hyphens=False)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
