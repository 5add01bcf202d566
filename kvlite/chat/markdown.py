"""An answer's Markdown, drawn for a terminal as it comes: what is drawn stays as it is.

A line of text appears word by word, one of code or of a table when it has ended, a table when its last row has. A line
of the answer is one on the screen, or several that fit it; only code is as long as it is, for whoever copies it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from kvlite.chat.code import CodeLines
from kvlite.chat.inline import markdown, safe_end, styled
from kvlite.chat.words import Wrapper, sgr
from kvlite.record.table import width_of

MOST_HELD = 4000  # characters of a line that has no end; more are shown as they are
_FENCE = re.compile(r"(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})(?P<language>[^`\n]*)")
_UNDECIDED = re.compile(r"[\s>#*+_=~`-]*(\d{1,9}[.)]?)?\s*(\[[ xX]?\]?)?\s*")
_RULE = re.compile(r"\s{0,3}([-*_])(?:\s*\1){2,}\s*")
_MARKER = re.compile(r"(?P<space>\s*)(?:(?P<quote>>)|(?P<heading>#{1,6})(?=\s)|(?P<item>[-*+]|\d{1,9}[.)])(?=\s))\s?")
_CELL_END = re.compile(r"(?<!\\)\|")
_INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)")
_TASK = re.compile(r"\[([ xX])\]\s")


class MarkdownStream:
    """Draws an answer for a terminal `width()` columns wide; `has_color` says whether colours may be used."""

    def __init__(self, width: Callable[[], int], *, has_color: bool) -> None:
        self._width, self._has_color = width, has_color
        self._held = ""  # of the present line, not yet drawn
        self._is_text = False  # the present line has begun, and holds words
        self._style = ""
        self._wrapper = Wrapper(width())
        self._fence: tuple[str, CodeLines] | None = None
        self._table: list[str] = []
        self._is_blank = True  # the last line was one, or nothing was drawn yet
        self._in_list = False

    def push(self, text: str) -> str:
        """Take more of the answer, without control characters, and draw what can be."""
        self._held += text
        drawn = []
        while "\n" in self._held:
            line, _, self._held = self._held.partition("\n")
            drawn.append(self._line(line.removesuffix("\r")))
        drawn.append(self._part())
        return "".join(drawn)

    def finish(self) -> str:
        """Draw what is held: the answer has ended, perhaps within a line."""
        line, self._held = self._held, ""
        drawn = self._line(line) if line or self._is_text else ""
        self._fence = None
        return drawn + self._end_table()

    def _line(self, line: str) -> str:
        """Draw what is missing of a line that has ended."""
        if self._is_text:
            self._is_text = False
            if self._fence is not None:
                return f"{line}\n"
            return self._wrapper.add(styled(line, self._style, has_color=self._has_color)) + "\n"
        if self._fence is not None:
            return self._code(line)
        if line.lstrip().startswith("|"):
            self._table.append(line)
            return ""
        drawn = self._end_table()
        if found := _FENCE.fullmatch(line):
            language = found["language"].strip()
            self._fence = found["fence"], CodeLines(language.split(" ")[0], has_color=self._has_color)
            self._is_blank = False
            return drawn + sgr(line, "2") + "\n"
        if not line.strip():
            was_blank, self._is_blank = self._is_blank, True
            return drawn if was_blank else f"{drawn}\n"
        self._is_blank = False
        if _RULE.fullmatch(line):
            return drawn + sgr("─" * min(self._width() - 1, 60), "2") + "\n"
        start, rest = self._begin(line)
        return drawn + start + self._wrapper.add(styled(rest, self._style, has_color=self._has_color)) + "\n"

    def _part(self) -> str:
        """Draw of a line that goes on what is certain."""
        held, drawn = self._held, ""
        if not self._is_text:
            is_kept = self._fence is not None or _UNDECIDED.fullmatch(held) or _FENCE.match(held)
            if (is_kept or held.lstrip().startswith("|")) and len(held) < MOST_HELD:
                return ""
            drawn = self._end_table()
            start, self._held = self._begin(held) if self._fence is None else ("", held)
            drawn += start
            self._is_text, self._is_blank = True, False
        if self._fence is not None:
            shown, self._held = self._held, ""
            return drawn + shown
        self._wrapper.width = max(10, self._width() - 1)
        if end := safe_end(self._held):
            shown, self._held = self._held[:end], self._held[end:]
            drawn += self._wrapper.add(styled(shown, self._style, has_color=self._has_color))
        return drawn

    def _begin(self, line: str) -> tuple[str, str]:
        """Begin a line of text: quote bars, bullets and headings. Returns what to draw, and the text after it."""
        first, indent, self._style = "", "", ""
        in_list = False
        while found := _MARKER.match(line):
            space = found["space"].expandtabs(4)
            if len(space) >= 4 and not first and not self._in_list:
                break  # code by indentation
            line = line[found.end() :]
            if found["heading"]:
                self._style = "1;4" if len(found["heading"]) == 1 else "1"
                break
            mark = "▌ " if found["quote"] else f"{found['item']} "
            if found["item"] and not found["item"][0].isdigit():
                mark = "• "
                if task := _TASK.match(line):
                    mark, line = "☐ " if task[1] == " " else "☑ ", line[task.end() :]
            first += space + sgr(mark, "2" if found["quote"] else "1" if self._has_color else "")
            indent += space + (sgr(mark, "2") if found["quote"] else " " * width_of(mark))
            in_list = in_list or bool(found["item"])
        text = line.lstrip() if not first or in_list else line
        if not first:
            space = line[: len(line) - len(line.lstrip())].expandtabs(4)
            first = indent = space
            in_list = self._in_list and bool(space)
        self._in_list = in_list
        width = max(10, self._width() - 1)
        if width_of(indent) > width // 2:
            indent = ""
        return self._wrapper.begin(first, indent, width), text

    def _code(self, line: str) -> str:
        assert self._fence is not None
        fence, lines = self._fence
        bare = line.strip(" \t>")
        if bare.startswith(fence) and not bare.strip(fence[0]):
            self._fence = None
            return sgr(line, "2") + "\n"
        return lines.line(line) + "\n"

    def _end_table(self) -> str:
        """Draw the rows that were held: as a table, or as they are where they are none."""
        rows, self._table = self._table, []
        if not rows:
            return ""
        self._is_blank = False
        cells = [*_cells("\n".join(rows))]
        if not cells:
            return "".join(self._text_line(row) for row in rows)
        return _drawn_table(cells, max(10, self._width() - 1), self._has_color)

    def _text_line(self, row: str) -> str:
        start, rest = self._begin(row)
        return start + self._wrapper.add(styled(rest, has_color=self._has_color)) + "\n"


def _widened(source: str) -> str:
    """A table whose header has as many cells as its longest row, else that is cut; bars in code part no cells."""
    header, *rest = (_INLINE_CODE.sub(lambda code: _CELL_END.sub(r"\|", code[0]), row) for row in source.split("\n"))
    counts = [_cell_count(row) for row in (header, *rest)]
    missing = max(counts) - counts[0]
    if missing and rest and counts[1] == counts[0]:
        header, rest[0] = (f"{row.rstrip().removesuffix('|')}|" for row in (header, rest[0]))
        header, rest[0] = header + "  |" * missing, rest[0] + "---|" * missing
    return "\n".join([header, *rest])


def _cell_count(row: str) -> int:
    return len(_CELL_END.findall(row.strip().removeprefix("|").removesuffix("|"))) + 1


def _cells(source: str) -> Iterator[list[tuple[str, str]]]:
    """The rows of a table, the header first: each cell's source and alignment. None where it is no table alone."""
    parsed = markdown().parse(_widened(source))
    if not parsed or parsed[0].type != "table_open" or parsed[-1].type != "table_close":
        return
    row: list[tuple[str, str]] = []
    align = "left"
    for token in parsed:
        if token.type in ("th_open", "td_open"):
            align = str(token.attrs.get("style", "text-align:left")).removeprefix("text-align:")
        elif token.type == "inline":
            row.append((token.content, align))
        elif token.type == "tr_close":
            yield row
            row = []


def _drawn_table(rows: list[list[tuple[str, str]]], width: int, has_color: bool) -> str:
    """A table at most `width` columns wide, its cells in lines that fit; one line a cell where it has too many."""
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(source: str, base: str = "") -> str:
        return "".join(sgr(*piece) for piece in styled(source, base, has_color=has_color))

    header, *body = rows
    if len(header) * 7 > width:
        lines = [
            f"{cell(name[0], '1')}{': ' if name[0] else ''}{cell(value[0])}"
            for row in body
            for name, value in zip(header, row, strict=True)
        ]
        return "".join(f"{line}\n" for line in lines)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, align in header:
        table.add_column(Text.from_ansi(cell(name, "1")), justify=align, overflow="fold")  # type: ignore[arg-type]
    for row in body:
        table.add_row(*(Text.from_ansi(cell(source)) for source, _ in row))
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system="standard", no_color=not has_color)
    console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())
