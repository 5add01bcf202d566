import io
import stat
import time
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kvlite.chat import terminal
from kvlite.chat.completion import ChatCompleter, known_words
from kvlite.chat.loop import Pasted
from kvlite.chat.roles import role_folder
from kvlite.chat.slash_commands import BY_NAME
from kvlite.chat.terminal import Terminal, is_open_block
from kvlite.console import Console
from kvlite.errors import Interrupted, UsageError

ALL = [f"/{name}" for name in BY_NAME]
ALT_ENTER = "\x1b\r"


@pytest.fixture
def typed(monkeypatch):
    """Reads what a user types, key by key."""
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())

    def read(keys, **options):
        with create_pipe_input() as pipe, create_app_session(input=pipe):
            pipe.send_text(keys)
            return Terminal(status=lambda: "KV", history=options.pop("history", None), **options).read()

    return read


def test_enter_sends_and_alt_enter_starts_a_line(typed):
    assert typed(f"one{ALT_ENTER}two\r") == "one\ntwo"


def test_triple_quotes_span_lines(typed):
    assert typed('"""one\rtwo"""\r') == '"""one\ntwo"""'


def test_a_pasted_text_keeps_its_lines(typed):
    assert typed("\x1b[200~one\ntwo\n\x1b[201~\r").replace("\r\n", "\n") == "one\ntwo\n"


def test_a_paste_is_sent_as_it_is_whatever_it_begins_with(typed):
    pasted = typed('\x1b[200~"""Doc.\r\nimport os\r\x1b[201~\r')
    assert isinstance(pasted, Pasted) and pasted == '"""Doc.\nimport os\n'
    assert not isinstance(typed("typed\r"), Pasted)


def test_five_thousand_pasted_lines_are_one_message(typed):
    text = "".join(f"line {n}\n" for n in range(5000))
    assert typed(f"\x1b[200~{text}\x1b[201~\r") == text


def test_what_was_typed_before_is_there_to_go_on_with(editing):
    def during(edited, pipe):
        pipe.send_text(" world\r")

    def read(edited):
        edited.ahead.feed(b"hello")
        return edited.read(), edited.ahead.text

    assert editing(during, read) == ("hello world", "")


def test_lines_sent_before_they_are_read_come_first_and_are_shown(monkeypatch, tmp_path):
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())
    edited = Terminal(status=None, history=tmp_path / "history")
    monkeypatch.setattr(edited._session.output, "write", screen.write, raising=False)
    edited.ahead.feed(b"one\x1b\rmore\rtwo\r\x04")
    assert (edited.read(), edited.read()) == ("one\nmore", "two")
    with pytest.raises(EOFError):
        edited.read()
    assert screen.getvalue() == ">>> one\n... more\n>>> two\n" and "two" in (tmp_path / "history").read_text()


def test_ctrl_d_ends_and_ctrl_c_interrupts(typed):
    with pytest.raises(EOFError):
        typed("\x04")
    with pytest.raises(KeyboardInterrupt):
        typed("abc\x03")


def test_vi_keys(typed):
    assert typed("abc\x1b0iX\r", vi=True) == "Xabc"


def test_history_is_kept_for_its_owner_only(typed, tmp_path):
    path = tmp_path / "state" / "history"
    typed("remember\r", history=path)
    assert "remember" in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_unusable_history_does_not_keep_anyone_from_typing(typed, tmp_path):
    (tmp_path / "file").write_text("")
    assert typed("hi\r", history=tmp_path / "file" / "history") == "hi"


@pytest.mark.parametrize(
    ("text", "is_open"),
    [('"""', True), ('"""a', True), ('"""a"""', False), ('""""', True), ("a", False), ('""""""', False), ('""', False)],
)
def test_is_open_block(text, is_open):
    assert is_open_block(text) is is_open


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/ret", ["/retry"]),
        ("/sa", ["/save"]),
        ("/load ", ["one"]),
        ("/load o", ["one"]),
        ("/set ", []),
        ("re", []),
        (" /re", []),
        ("", [*ALL]),
    ],
)
def test_completion_offers_commands_at_the_start_only(text, words):
    completions = ChatCompleter({"load": lambda: ["one"]}).get_completions(Document(text), CompleteEvent())
    assert [completion.text for completion in completions] == words


@pytest.mark.parametrize(
    ("text", "word"),
    [("/model smollm2-1.", "smollm2-1.7b"), ("/policy tov", "tova"), ("/think o", "on"), ("/role fr", "french")],
)
def test_completion_knows_models_policies_and_roles(text, word):
    role_folder().mkdir(parents=True, exist_ok=True)
    (role_folder() / "french.toml").write_text('system = "French."')
    completions = ChatCompleter(known_words()).get_completions(Document(text), CompleteEvent())
    assert next(completion.text for completion in completions) == word


@pytest.fixture
def console():
    return Console(stdout=io.StringIO(), stderr=io.StringIO())


def wait_for(is_so):
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.fixture
def editing(monkeypatch):
    """A terminal whose `read` another thread watches: `during(terminal, keys)` is called once a text is edited.

    `reads` calls it.
    """
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())

    def read(during, reads=Terminal.read):
        with create_pipe_input() as pipe, create_app_session(input=pipe):
            edited = Terminal(status=None, history=None)

            def watch():
                while not edited._session.app.is_running:
                    if is_over.wait(0.01):
                        return
                during(edited, pipe)

            is_over = Event()
            thread = Thread(target=watch, daemon=True)
            thread.start()
            try:
                return reads(edited)
            finally:
                is_over.set()
                thread.join(30)

    return read


def test_what_is_written_above_the_text_comes_before_it_is_sent(editing):
    written = []

    def during(edited, pipe):
        pipe.send_text("hel")
        edited.above(lambda: written.append("banner"))
        while not written:
            time.sleep(0.01)
        pipe.send_text("lo\r")

    assert (editing(during), written) == ("hello", ["banner"])


def test_nothing_that_is_written_while_a_text_is_sent_is_lost(editing):
    written = []

    def during(edited, pipe):
        pipe.send_text("hi\r")
        for number in range(200):
            edited.above(lambda number=number: written.append(number))

    assert (editing(during), written) == ("hi", list(range(200)))


def test_a_loop_that_is_gone_between_two_looks_loses_nothing(monkeypatch):
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())

    class Closing:
        is_running, context, looks = True, object(), 0

        @property
        def loop(self):
            self.looks += 1
            return loop if self.looks == 1 else None

    def closed(*_, **__):
        raise RuntimeError("Event loop is closed")

    loop, written = SimpleNamespace(call_soon_threadsafe=closed), []
    edited = Terminal(status=None, history=None)
    edited._session = SimpleNamespace(app=Closing())
    edited.above(lambda: written.append(1))
    assert written == [1]


def test_what_is_written_when_nothing_is_edited_is_written_at_once(monkeypatch):
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())
    written = []
    Terminal(status=None, history=None).above(lambda: written.append(1))
    assert written == [1]


def test_what_fails_ends_the_reading(editing, console):
    failing = Event()

    def fail():
        assert failing.wait(30)
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        editing(lambda edited, pipe: failing.set(), lambda edited: edited.read_beside(fail, console))


def test_what_has_failed_before_ends_the_reading_when_it_begins(editing, console):
    def fail():
        raise ValueError("failed")

    def read_late(edited):
        read = edited.read
        edited.read = lambda: (wait_for(edited._work.done), read())[1]
        return edited.read_beside(fail, console)

    with pytest.raises(ValueError, match="failed"):
        editing(lambda edited, pipe: None, read_late)


def test_the_status_line_is_drawn_again_when_the_work_is_done(editing, console):
    drawn, working = [], Event()

    def during(edited, pipe):
        edited._session.app.after_render += lambda app: drawn.append(edited._work.done())
        working.set()
        wait_for(lambda: True in drawn)
        pipe.send_text("hi\r")

    assert editing(during, lambda edited: edited.read_beside(lambda: working.wait(30), console)) == ("hi", True)


@pytest.fixture
def given(monkeypatch):
    """A terminal that reads these lines, or raises what is among them; `discarded` counts what was dropped."""
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())
    monkeypatch.setattr(terminal, "discard_typed", lambda: made.discarded.append(1))

    def made(*lines):
        waiting = list(lines)

        def read():
            line = waiting.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        made_terminal = Terminal(status=None, history=None)
        monkeypatch.setattr(made_terminal, "read", read)
        return made_terminal

    made.discarded = []
    return made


def test_a_line_is_read_before_the_work_is_done_and_waits_for_it(given, console):
    edited, is_read = given("", "  ", "Hello"), Event()
    first_line = edited._first_line
    edited._first_line = lambda: (first_line(), is_read.set())[0]
    assert edited.read_beside(lambda: is_read.wait(30), console) == ("Hello", True)


def test_notes_go_above_the_line_until_the_result_is_there(given, console, monkeypatch):
    above = []
    edited = given("Hello")
    monkeypatch.setattr(edited, "above", lambda write: (above.append(1), write()))
    edited.read_beside(lambda: console.note("loaded"), console)
    console.note("later")
    assert len(above) == 1 and console.stderr.getvalue() == "loaded\nlater\n"


def test_a_failure_is_raised_and_drops_what_was_typed(given, console):
    def fail():
        raise UsageError("too small")

    with pytest.raises(UsageError, match="too small"):
        given("Hello").read_beside(fail, console)
    assert len(given.discarded) == 1  # a shell would take what is not read yet for commands


def test_a_file_that_ends_too_early_is_no_way_of_leaving(given, console):
    def fail():
        raise EOFError("ran out of input")

    edited = given()

    def read():
        wait_for(edited._work.done)
        raise EOFError

    edited.read = read
    with pytest.raises(EOFError, match="ran out"):
        edited.read_beside(fail, console)


@pytest.mark.parametrize("last", [EOFError(), "/exit", " /bye "])
def test_leaving_does_not_wait(given, console, last):
    never = Event()
    assert given(last).read_beside(never.wait, console) is None
    with pytest.raises(Interrupted):
        given(KeyboardInterrupt(), KeyboardInterrupt(), "Hello").read_beside(never.wait, console)
    assert given(KeyboardInterrupt(), "Hello").read_beside(lambda: 1, console) == ("Hello", 1)
    never.set()
