"""An answer drawn on a terminal, a real one to the process, while keys come and Ctrl-C is pressed."""

import io
import os
import signal
import sys
import termios
import time
from threading import Thread

import pytest

from kvlite.chat.display import AnswerFormat, Display
from kvlite.chat.live import Keyboard, LiveLines
from kvlite.chat.loop import Chat, Opened
from kvlite.chat.screen import Screen
from kvlite.chat.session import Session
from kvlite.chat.session_files import SessionFolder
from kvlite.chat.typed_ahead import TypedAhead
from kvlite.chat.words import without_sgr
from kvlite.console import Console
from kvlite.llm.answer import AnswerSettings
from kvlite.record.recorder import Recorder


class Watched:
    """A chat at a pseudo-terminal; `keys` types, `written` is all that came out so far."""

    def __init__(self, engine, text, folder, master, stream):
        self.engine, self.master, self.written, self.asked = engine, master, b"", 0
        console = Console(stdout=stream, stderr=stream)
        session = Session(engine, text, AnswerSettings())
        self.ahead = TypedAhead()
        lines = LiveLines(console, session.counts, self.ahead)
        screen = Screen(console, lines, draws_markdown=True, has_color=True)
        display = Display(console, Recorder("chat", (), report="none"), AnswerFormat(), screen)
        opened = Opened(session, None, "demo", "demo")
        self.chat = Chat(opened, SessionFolder(folder), display, opens=None, autosaves=False)
        self.at = {}
        run = engine.run

        def acting(requests):
            for number, event in enumerate(run(requests)):
                self.at.pop(number, lambda: None)()
                yield event

        engine.run = acting
        self.drain = Thread(target=self._drain, daemon=True)
        self.drain.start()

    def _drain(self):
        try:
            while data := os.read(self.master, 65536):
                self.written += data
        except OSError:
            pass

    def keys(self, data, until):
        os.write(self.master, data)
        wait_for(lambda: until(self.ahead))

    def ask(self, question, says, at=None):
        self.engine.script.append(says)
        self.at = at or {}
        self.chat.handle(question)
        self.asked += 1
        mark = f"\x1b]all of {self.asked}\x07"
        self.chat._console.draw(mark)
        wait_for(lambda: mark.encode() in self.written)
        self.written = self.written.replace(mark.encode(), b"")
        return self.answer

    @property
    def answer(self):
        """Text that stays on the screen: all that was drawn but the live lines."""
        parts = self.written.decode().replace("\r\n", "\n").split("\x1b[J")
        return (
            without_sgr("".join(part.partition("\x1bD")[0] for part in parts))
            .replace("\x1b[?2004h", "")
            .replace("\x1b[?2004l", "")
        )

    def awaits(self, text):
        wait_for(lambda: self.has_shown(text))

    def has_shown(self, text):
        return text in without_sgr(self.written.decode(errors="replace"))


def wait_for(is_so):
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.fixture
def watched(engine, text, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    master, slave = os.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(os.dup(slave), "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        made = Watched(engine, text, tmp_path / "sessions", master, stdout)
        before = termios.tcgetattr(slave)
        yield made
        assert termios.tcgetattr(slave) == before
    made.drain.join(10)
    os.close(master)


def test_an_answer_is_drawn_as_markdown_and_the_cache_lives_below_it(watched):
    shown = watched.ask("hi", "# Title\n\nsome **bold** words\n")
    assert shown.startswith("Title\n\nsome bold words\n") and "29 tok ·" in shown
    assert watched.has_shown("kept 10 of 10") and "kept" not in shown


def test_what_is_typed_goes_to_the_next_prompt_and_never_into_the_answer(watched):
    typing = {3: lambda: watched.keys(b"next?", lambda ahead: ahead.text == "next?")}
    shown = watched.ask("hi", "a long answer", typing)
    assert shown.startswith("a long answer\n") and "next?" not in shown and watched.has_shown(">>> next?▏")
    assert watched.ahead.text == "next?"


def test_a_line_sent_during_an_answer_waits_and_is_shown(watched):
    typing = {3: lambda: watched.keys(b"one\rtwo", lambda ahead: ahead.text == "two")}
    watched.ask("hi", "a long answer", {**typing, 4: lambda: watched.awaits("next: one")})
    assert [*watched.ahead.sent] == ["one"]


def test_ctrl_d_during_an_answer_waits_and_is_shown(watched):
    typing = {3: lambda: watched.keys(b"\x04", lambda ahead: bool(ahead.sent))}
    watched.ask("hi", "a long answer", {**typing, 4: lambda: watched.awaits("next: leave")})
    assert [*watched.ahead.sent] == ["\x04"]


@pytest.mark.parametrize("moment", [0, 1, 2, 7, 12])
def test_ctrl_c_at_any_moment_keeps_the_answer_so_far_and_what_is_typed(watched, moment):
    def press():
        watched.keys(b"sent\rtyped", lambda ahead: ahead.text == "typed")
        signal.raise_signal(signal.SIGINT)

    watched.ask("hi", "a long answer", {moment: press})
    assert watched.ahead.text == "sent\ntyped" and not watched.ahead.sent
    said = watched.chat.session.messages[-1]["content"]
    assert said == "a long answer"[: moment + 1] and watched.answer.startswith(said.strip())


def test_ctrl_z_leaves_the_terminal_to_the_shell_until_the_process_goes_on(watched, monkeypatch):
    found, stopped = termios.tcgetattr(sys.stdin), []

    def stop(group, number):
        stopped.append((group, number, termios.tcgetattr(sys.stdin) == found))

    monkeypatch.setattr(os, "killpg", stop)
    pressing = {
        3: lambda: watched.keys(b"typed\x1a", lambda ahead: bool(stopped)),
        5: lambda: watched.keys(b" on", lambda ahead: ahead.text == "typed on"),
    }
    shown = watched.ask("hi", "a long answer", pressing)
    assert stopped == [(0, signal.SIGTSTP, True)]
    assert shown.partition(" tok · ")[0].replace("\n", "").startswith("a long answer")
    last = watched.written.decode().partition("\x1b[?2004l")[0].rpartition("\x1b[J")[2]
    assert not last.strip()  # no live line is left to the shell


def test_a_terminal_that_was_closed_is_left_without_an_error():
    master, slave = os.openpty()
    keys = Keyboard(slave)
    keys.take()
    os.close(master)
    keys.leave()
    os.close(slave)


def test_a_paste_of_five_thousand_lines_is_taken_whole(watched):
    text = '"""\n' + "".join(f"line {n}\n" for n in range(5000))
    paste = b"\x1b[200~" + text.encode() + b"\x1b[201~"
    watched.ask(
        "hi",
        "a long answer",
        {
            2: lambda: watched.keys(paste, lambda ahead: len(ahead.text) == len(text)),
            4: lambda: watched.awaits("[5,002 lines]"),
        },
    )
    assert watched.ahead.text == text


def test_escape_codes_of_an_answer_do_not_reach_the_terminal(watched):
    shown = watched.ask("hi", "a\x1b[2Jb\x1b]0;title\x07c\n```\n\x1b[31mred\n```")
    assert shown.startswith("a[2Jb]0;titlec\n```\n[31mred\n```\n")
    assert b"\x1b[2J" not in watched.written and b"\x1b]0" not in watched.written


def test_a_terminal_that_is_made_narrow_during_an_answer_has_lines_that_fit(watched, monkeypatch):
    words = [f"w{number:03}" for number in range(60)]
    shown = watched.ask("hi", " ".join(words), {100: lambda: monkeypatch.setenv("COLUMNS", "24")})
    lines = shown.partition(" tok · ")[0].splitlines()[:-1]
    assert " ".join(lines).split() == words
    assert 40 < len(lines[0]) < 60 and all(len(line) < 24 for line in lines if line >= "w040")


def test_a_pasted_line_of_a_hundred_thousand_characters_is_taken_whole(watched):
    line = "é" * 100_000
    paste = b"\x1b[200~" + line.encode() + b"\x1b[201~"
    taken = {2: lambda: watched.keys(paste, lambda ahead: ahead.text == line), 4: lambda: watched.awaits("éé▏")}
    assert watched.ask("hi", "a long answer", taken).startswith("a long answer\n")
    assert watched.ahead.text == line and len(watched.written) < 100_000


def test_a_character_of_which_half_has_come_is_awaited_and_survives_ctrl_c(watched):
    def press():
        watched.keys(b"caf" + b"\xc3", lambda ahead: ahead.text == "caf")
        signal.raise_signal(signal.SIGINT)

    watched.ask("hi", "a long answer", {3: press})
    watched.ask("ho", "an answer", {2: lambda: watched.keys(b"\xa9", lambda ahead: ahead.text == "café")})
    assert watched.ahead.text == "café"


def test_a_fence_left_open_ends_with_its_answer(watched):
    watched.ask("hi", "```python\nx = 1")
    shown = watched.ask("ho", "**bold** words")
    assert shown.startswith("```python\nx = 1\n") and "\nbold words\n" in shown


def test_thinking_is_told_in_a_line(watched):
    shown = watched.ask("hi", "<hm hm hm>yes")
    assert "hm" not in shown and shown.startswith("thought for 0.") and shown.splitlines()[1] == "yes"


def test_a_note_within_an_answer_stands_on_its_own_line(watched):
    shown = watched.ask("hi", "one two three", {6: lambda: watched.chat._console.warn("careful")})
    assert "one\nkvlite: warning: careful\n" in shown


def test_without_a_terminal_to_type_at_the_answer_is_drawn_all_the_same(watched, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert watched.ask("hi", "an answer").startswith("an answer\n")
