from __future__ import annotations

import errno
import io
import json
import re

import pytest

from kvlite.console import Console, strip_controls
from kvlite.errors import OutputError, UsageError
from kvlite.record.table import Table

ESCAPES = "\x1b[31mred\x1b[0m \x07bell \x9b31m c1 \u202eltr\u2066 \x7f\rback\ud800"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A stream whose writes fail with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, _text: str) -> int:
        raise OSError(self.code, "as told")


def consoles(stdout: io.StringIO, **flags: object) -> tuple[Console, io.StringIO]:
    stderr = io.StringIO()
    return Console(stdout=stdout, stderr=stderr, **flags), stderr  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def test_strip_controls_keeps_text_tabs_and_newlines() -> None:
    assert strip_controls("a\tb\nü 漢字 🙂 é") == "a\tb\nü 漢字 🙂 é"


def test_strip_controls_removes_what_steers_a_terminal() -> None:
    assert strip_controls(ESCAPES) == "[31mred[0m bell 31m c1 ltr back"


def test_an_answer_reaches_a_pipe_byte_for_byte_but_a_terminal_without_controls() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    consoles(pipe)[0].answer("\x1b[2Jhi\r")
    consoles(terminal)[0].answer("\x1b[2Jhi\r")
    assert pipe.getvalue() == "\x1b[2Jhi\r"
    assert terminal.getvalue() == "[2Jhi"


def test_an_escape_split_over_two_answers_does_not_come_together() -> None:
    terminal = Terminal()
    console, _ = consoles(terminal)
    for piece in ("\x1b", "[2J", "\u202e", "x"):
        console.answer(piece)
    assert terminal.getvalue() == "[2Jx"


def test_lone_surrogates_never_reach_stdout() -> None:
    pipe = io.StringIO()
    consoles(pipe)[0].answer("a\ud800b")
    assert pipe.getvalue().encode("utf-8").decode() == "a\ufffdb"


def test_all_of_stderr_is_stripped_even_into_a_pipe() -> None:
    console, stderr = consoles(io.StringIO(), verbose=True)
    for say in (console.note, console.warn, console.error, console.detail, console.aside):
        say(ESCAPES)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", stderr.getvalue())


def test_an_error_is_one_line_with_the_programs_name() -> None:
    console, stderr = consoles(io.StringIO(), quiet=True)
    console.error(UsageError("first\nsecond"))
    assert stderr.getvalue() == "kvlite: first second\n"


def test_quiet_hides_notes_and_not_warnings() -> None:
    console, stderr = consoles(io.StringIO(), quiet=True)
    console.note("hidden")
    console.warn("shown")
    assert stderr.getvalue() == "kvlite: warning: shown\n"


def test_details_need_verbose() -> None:
    console, stderr = consoles(io.StringIO())
    console.detail("hidden")
    assert stderr.getvalue() == ""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "input/output error"])
def test_an_unwritable_stdout_is_an_output_error(code: int) -> None:
    with pytest.raises(OutputError, match="cannot write to stdout: as told"):
        consoles(Broken(code))[0].line("text")


def test_a_closed_pipe_stays_a_broken_pipe() -> None:
    with pytest.raises(BrokenPipeError):
        consoles(Broken(errno.EPIPE))[0].line("text")


def test_a_stderr_nobody_reads_does_not_stop_the_answer() -> None:
    stdout = io.StringIO()
    console = Console(stdout=stdout, stderr=Broken(errno.EPIPE))
    console.note("unheard")
    console.line("answer")
    assert stdout.getvalue() == "answer\n"


@pytest.mark.parametrize(
    ("environment", "flags", "colored"),
    [
        ({}, {}, True),
        ({"NO_COLOR": "1"}, {}, False),
        ({"NO_COLOR": ""}, {}, True),
        ({"NO_COLOR": "1"}, {"color": "always"}, True),
        ({"TERM": "dumb"}, {}, False),
        ({}, {"color": "never"}, False),
        ({}, {"plain": True}, False),
        ({}, {"plain": True, "color": "always"}, False),
    ],
)
def test_colour_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], flags: dict[str, object], colored: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stderr = Terminal()
    Console(stdout=Terminal(), stderr=stderr, **flags).note("text")  # type: ignore[arg-type]
    assert ("\x1b[" in stderr.getvalue()) is colored


def test_a_pipe_gets_colour_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_color(**flags: object) -> bool:
        pipe = io.StringIO()
        consoles(pipe, **flags)[0].table(("A",), ())
        return "\x1b[" in pipe.getvalue()

    assert not has_color()
    assert has_color(color="always")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert has_color()


def test_json_is_one_line_of_readable_text() -> None:
    pipe = io.StringIO()
    consoles(pipe)[0].json({"text": "ü\n", "n": 1})
    assert pipe.getvalue() == '{"text": "ü\\n", "n": 1}\n'
    assert json.loads(pipe.getvalue()) == {"text": "ü\n", "n": 1}


def test_a_table_is_aligned_and_its_cells_stay_in_their_line() -> None:
    pipe = io.StringIO()
    consoles(pipe)[0].table(("NAME", "SIZE"), [("a\nb\x1b", "1"), ("longer", "20")])
    assert pipe.getvalue() == "NAME    SIZE\na b     1\nlonger  20\n"


def test_a_table_counts_the_columns_of_a_terminal() -> None:
    pipe = io.StringIO()
    consoles(pipe)[0].table(("NAME", "SIZE"), [("日本", "1"), ("e\u0301", "2"), ("👍", "3")])
    assert pipe.getvalue() == "NAME  SIZE\n日本  1\ne\u0301     2\n👍    3\n"
    assert [piece.columns for piece in Table(("A", "B", "C"), (("x", "日本語", "日本語"),)).pieces(14)] == [
        ("A", "B"),
        ("A", "C"),
    ]


def test_a_table_on_a_terminal_has_a_bold_header_and_nothing_else() -> None:
    terminal = Terminal()
    consoles(terminal)[0].table(("NAME",), [("\x1b[1mx",)])
    assert terminal.getvalue() == "\x1b[1mNAME\x1b[0m\n[1mx\n"


def test_a_wide_table_is_shown_in_pieces_that_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "12")
    table = Table(("NAME", "FIRST", "SECOND"), (("a", "1", "2"),), note="of two")
    terminal, pipe = Terminal(), io.StringIO()
    consoles(terminal)[0].show(table)
    consoles(pipe)[0].show(table)
    assert terminal.getvalue() == "NAME  FIRST\na     1\n\nNAME  SECOND\na     2\nof two\n"
    assert pipe.getvalue() == "NAME  FIRST  SECOND\na     1      2\nof two\n"


def test_a_paragraph_has_lines_that_fit_the_terminal_and_is_one_line_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    terminal, pipe = Terminal(), io.StringIO()
    consoles(terminal)[0].paragraph("one two three-four")
    consoles(pipe)[0].paragraph("one two three-four")
    assert (terminal.getvalue(), pipe.getvalue()) == ("one two\nthree-four\n", "one two three-four\n")


def test_a_status_line_is_redrawn_around_a_note_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stderr = Terminal()
    console = Console(stdout=io.StringIO(), stderr=stderr)
    with console.progress() as progress:
        progress("1/2")
        console.note("said")
    assert stderr.getvalue() == "\r\x1b[K1/2\r\x1b[Ksaid\n\r\x1b[K1/2\r\x1b[K"


def test_progress_into_a_pipe_has_no_escape_codes_and_waits_its_turn() -> None:
    console, stderr = consoles(io.StringIO())
    with console.progress() as progress:
        progress("1/2")
    assert stderr.getvalue() == ""


def test_a_quiet_console_shows_no_progress() -> None:
    stderr = Terminal()
    with Console(quiet=True, stdout=io.StringIO(), stderr=stderr).progress("bar") as progress:
        progress("1/2")
    assert stderr.getvalue() == ""


def test_confirm_without_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match="give -y"):
        consoles(io.StringIO())[0].confirm("Delete?")


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("YES\n", True), ("n\n", False), ("", False)])
def test_confirm_takes_only_a_yes(monkeypatch: pytest.MonkeyPatch, typed: str, agreed: bool) -> None:
    terminal = Terminal(typed)
    monkeypatch.setattr("sys.stdin", terminal)
    assert consoles(io.StringIO())[0].confirm("Delete?") is agreed


def test_only_a_terminal_has_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "97")
    assert consoles(Terminal())[0].width == 97
    assert consoles(io.StringIO())[0].width is None
