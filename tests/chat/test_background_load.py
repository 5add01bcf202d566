"""What is sent while the work behind the first prompt goes on waits for it; what fails ends the prompt."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from threading import Event

import pytest

from kvlite.chat.background_load import BackgroundLoad
from kvlite.console import Console
from kvlite.errors import Interrupted, UsageError


class Keys:
    """Stands for a terminal: gives lines, or raises what is among them."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)
        self.redrawn = self.discarded = 0
        self.ending: list[BaseException] = []

    def read(self) -> str:
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def above(self, write: Callable[[], None]) -> None:
        self.lines.append("written above")
        write()

    def discard(self) -> None:
        self.discarded += 1

    def redraw(self) -> None:
        self.redrawn += 1

    def end(self, error: BaseException) -> None:
        self.ending.append(error)


@pytest.fixture
def console() -> Console:
    return Console(stdout=io.StringIO(), stderr=io.StringIO())


def loading(work: Callable[[], object], keys: Keys, console: Console) -> BackgroundLoad[object]:
    return BackgroundLoad(work, keys, console)  # type: ignore[arg-type]


def test_a_line_is_read_before_the_work_is_done_and_waits_for_it(console: Console) -> None:
    is_sent = Event()
    work = loading(lambda: is_sent.wait(10), Keys("", "  ", "Hello"), console)
    assert work.line() == "Hello" and not work.is_done
    is_sent.set()
    assert work.result() is True and work.is_done


def test_notes_go_above_the_line_until_the_result_is_there(console: Console) -> None:
    keys = Keys()
    loading(lambda: console.note("loaded"), keys, console).result()
    console.note("later")
    assert keys.lines == ["written above"]


def test_what_fails_is_raised_and_ends_the_prompt(console: Console) -> None:
    def fail() -> None:
        raise UsageError("too small")

    keys = Keys("Hello")
    work = loading(fail, keys, console)
    with pytest.raises(UsageError, match="too small"):
        work.result()
    assert [str(error) for error in keys.ending] == ["too small"]
    assert keys.discarded == 1  # a shell would take what is not read yet for commands


def test_a_file_that_ends_too_early_is_no_way_of_leaving(console: Console) -> None:
    def fail() -> None:
        raise EOFError("ran out of input")

    work = loading(fail, Keys(EOFError()), console)
    with pytest.raises(EOFError, match="ran out"):
        work.result()
    with pytest.raises(EOFError, match="ran out"):
        work.line()


def test_leaving_does_not_wait(console: Console) -> None:
    never = Event()
    assert loading(never.wait, Keys(EOFError()), console).line() is None
    with pytest.raises(Interrupted):
        loading(never.wait, Keys(KeyboardInterrupt(), KeyboardInterrupt(), "Hello"), console).line()
    assert loading(never.wait, Keys(KeyboardInterrupt(), "Hello"), console).line() == "Hello"
    never.set()


def test_the_status_line_is_drawn_again_when_the_work_is_done(console: Console) -> None:
    keys = Keys()
    loading(lambda: None, keys, console).result()
    for _ in range(500):
        if keys.redrawn:
            break
        time.sleep(0.01)
    assert keys.redrawn == 1
