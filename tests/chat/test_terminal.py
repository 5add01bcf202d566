import stat
import time
from threading import Event, Thread

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kvlite.chat import terminal
from kvlite.chat.slash_commands import BY_NAME
from kvlite.chat.terminal import Terminal, command_completer, is_open_block

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
    [("/re", ["/retry", "/regen"]), ("/sa", ["/save"]), ("/set ", []), ("re", []), (" /re", []), ("", [*ALL])],
)
def test_completion_offers_commands_at_the_start_only(text, words):
    completions = command_completer().get_completions(Document(text), CompleteEvent())
    assert [completion.text for completion in completions] == words


@pytest.fixture
def editing(monkeypatch):
    """A terminal whose `read` another thread watches: `during(terminal, keys)` is called once a text is edited."""
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())

    def read(during):
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
                return edited.read()
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


def test_what_is_written_when_nothing_is_edited_is_written_at_once(monkeypatch):
    monkeypatch.setattr(terminal, "create_output", lambda **_: DummyOutput())
    written = []
    Terminal(status=None, history=None).above(lambda: written.append(1))
    assert written == [1]


@pytest.mark.parametrize("is_early", [False, True], ids=["while a text is edited", "before"])
def test_another_thread_may_end_the_reading(editing, monkeypatch, is_early):
    if is_early:
        started = Terminal.__init__
        monkeypatch.setattr(
            Terminal, "__init__", lambda self, *a, **k: (started(self, *a, **k), self.end(ValueError("failed")))[0]
        )
    with pytest.raises(ValueError, match="failed"):
        editing(lambda edited, pipe: None if is_early else edited.end(ValueError("failed")))
