"""The prompt at a terminal: history, several lines, completion of commands, the status line.

With typed_ahead.py and completion.py the only module that loads prompt_toolkit. Knows nothing of models: it returns
lines, shows the status it is given, and lets a work go on beside the first line.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.filters import completion_is_selected, has_completions
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output

from kvlite.chat.completion import ChatCompleter, known_words
from kvlite.chat.interrupt import Interrupts
from kvlite.chat.loop import QUOTES, Pasted
from kvlite.chat.slash_commands import LEAVING
from kvlite.chat.typed_ahead import END, TypedAhead

if TYPE_CHECKING:
    from kvlite.console import Console

T = TypeVar("T")

REDRAWN_EVERY_S = 0.5  # while a model is loading, whose seconds are shown


class Terminal:
    """Editor for the user's messages; Enter sends, Alt-Enter starts a new line."""

    def __init__(self, status: Callable[[], str] | None, history: Path | None, vi: bool = False) -> None:
        self.ahead = TypedAhead()
        """The keys pressed while no text was edited."""
        self._is_pasted = False
        self._is_idle = True
        self._session: PromptSession[str] = PromptSession(
            message=">>> ",
            multiline=True,
            prompt_continuation=lambda width, number, is_wrapped: "    " if is_wrapped else "... ",
            history=_history(history),
            completer=ChatCompleter(known_words()),
            key_bindings=self._bindings(),
            bottom_toolbar=status,
            vi_mode=vi,
            enable_open_in_editor=True,
            enable_suspend=True,
            search_ignore_case=True,
            output=create_output(always_prefer_tty=True),  # an answer redirected to a file stays free of prompts
        )
        self._waiting: deque[Callable[[], None]] = deque()
        self._work: Future[Any] = Future()

    def read(self) -> str:
        """Return the next text; raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C, or the error of the work."""
        if self.ahead.sent:
            return self._sent_ahead(self.ahead.sent.popleft())
        begun = self.ahead.take()
        self._is_pasted = isinstance(begun, Pasted)
        try:
            every_s = 0 if self._is_idle else REDRAWN_EVERY_S
            text = self._session.prompt(default=begun, pre_run=self._notice_work, refresh_interval=every_s)
        finally:
            self._write_waiting()
        return Pasted(text) if self._is_pasted and text else text

    def begin_with(self, text: str) -> None:
        """Let the next text begin with this one, to be edited."""
        self.ahead.put(text)

    def _sent_ahead(self, line: str) -> str:
        """A line sent before it was asked for, written as if it had been typed now; EOFError where it is the end."""
        if line == END:
            raise EOFError
        self._session.history.append_string(line)
        output = self._session.output
        output.write(">>> " + line.replace("\n", "\n... ") + "\n")
        output.flush()
        return line

    def read_beside(self, work: Callable[[], T], console: Console) -> tuple[str, T] | None:
        """Return the first line that is sent and the result of `work`, done in a thread that ends with the process.

        None, without waiting for it, where the user leaves; raises the error of the work, which ends the reading. What
        `console` writes in the meantime appears above the line.
        """
        self._work, self._is_idle = Future(), False
        self._work.add_done_callback(lambda _: self._schedule(self._notice_work))
        console.around = self.above
        Thread(target=_do, args=(work, self._work), name="loading", daemon=True).start()
        try:
            line = self._first_line()
            if line is None:
                return None
            with console.progress() as progress:
                if not self._work.done():
                    progress("loading…")
                return line, self._work.result()
        except BaseException:
            discard_typed()
            raise
        finally:
            console.around = lambda write: write()
            self._is_idle = True

    def above(self, write: Callable[[], None]) -> None:
        """Call `write` so that its lines appear above a text being edited; from any thread."""
        self._waiting.append(write)
        if not self._schedule(lambda: run_in_terminal(self._write_waiting)):
            self._write_waiting()

    def _first_line(self) -> str | None:
        """Read lines until one holds a message or a command; None where it is one to leave, or its end comes first."""
        interrupts = Interrupts()
        while True:
            interrupts.check()
            try:
                line = self.read()
            except EOFError:
                if self._work.done():
                    self._work.result()  # the work may itself have failed with an EOFError
                return None
            except KeyboardInterrupt:
                interrupts.press()
            else:
                if line.strip():
                    return None if line.strip() in LEAVING else line

    def _schedule(self, call: Callable[[], object]) -> bool:
        """Call `call` in the editor's loop, from any thread; false where no text is being edited."""
        app = self._session.app
        loop, context = app.loop, app.context  # the editor takes its loop away when a text is sent
        with suppress(RuntimeError):  # the text has just been sent, and the loop is closed
            if app.is_running and loop is not None and context is not None:
                loop.call_soon_threadsafe(call, context=context)
                return True
        return False

    def _notice_work(self) -> None:
        """Draw the status line again once the work is done; if it failed, end the reading with its error."""
        app = self._session.app
        if self._work.done() and app.is_running and not app.is_done:
            if error := self._work.exception():
                app.exit(exception=error)
            app.invalidate()

    def _write_waiting(self) -> None:
        with suppress(IndexError):
            while True:
                self._waiting.popleft()()

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("enter", filter=~completion_is_selected)
        def _(event: KeyPressEvent) -> None:
            if not self._is_pasted and is_open_block(event.current_buffer.text):
                event.current_buffer.insert_text("\n")
            else:
                event.current_buffer.validate_and_handle()

        @bindings.add("enter", filter=has_completions & completion_is_selected)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.complete_state = None

        @bindings.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @bindings.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            self._is_pasted = True
            event.current_buffer.insert_text(event.data.replace("\r\n", "\n").replace("\r", "\n"))

        return bindings


def discard_typed() -> None:
    """Drop typed text that was not read yet: the shell would take it for commands."""
    with suppress(ImportError, OSError, ValueError):  # no POSIX terminal
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def is_open_block(text: str) -> bool:
    """True where a text begun with triple quotes still lacks the closing ones."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


def _do(work: Callable[[], T], found: Future[T]) -> None:
    try:
        found.set_result(work())
    except BaseException as error:
        found.set_exception(error)


def _history(path: Path | None) -> History:
    """Open the history of messages in a file only its owner reads; in memory where there can be none."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
