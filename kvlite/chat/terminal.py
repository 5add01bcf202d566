"""The prompt at a terminal: history, several lines, completion of commands, the status line.

The only module that loads prompt_toolkit. Knows nothing of models: it returns lines and shows the status it is given.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import completion_is_selected, has_completions
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from kvlite.chat.loop import QUOTES
from kvlite.chat.slash_commands import BY_NAME


class Terminal:
    """Editor for the user's messages; Enter sends, Alt-Enter starts a new line."""

    def __init__(self, status: Callable[[], str] | None, history: Path | None, vi: bool = False) -> None:
        self._session: PromptSession[str] = PromptSession(
            message=">>> ",
            multiline=True,
            prompt_continuation="... ",
            history=_history(history),
            completer=command_completer(),
            key_bindings=_bindings(),
            bottom_toolbar=status,
            vi_mode=vi,
            output=create_output(always_prefer_tty=True),  # an answer redirected to a file stays free of prompts
        )
        self._waiting: deque[Callable[[], None]] = deque()
        self._ending: BaseException | None = None

    def read(self) -> str:
        """Return the next text; raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C, or the error given to `end`."""
        try:
            return self._session.prompt(pre_run=self._end_now)
        finally:
            self._write_waiting()

    def above(self, write: Callable[[], None]) -> None:
        """Call `write` so that its lines appear above a text being edited; from any thread."""
        self._waiting.append(write)
        if not self._schedule(lambda: run_in_terminal(self._write_waiting)):
            self._write_waiting()

    def discard(self) -> None:
        """Drop typed text that was not read yet: the shell would take it for commands."""
        with suppress(ImportError, OSError, ValueError):  # no POSIX terminal
            import termios

            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)

    def redraw(self) -> None:
        """Draw the status line again; from any thread."""
        self._schedule(self._session.app.invalidate)

    def end(self, error: BaseException) -> None:
        """Make `read` raise `error`, now or when it is called; from any thread."""
        self._ending = error
        self._schedule(self._end_now)

    def _schedule(self, call: Callable[[], object]) -> bool:
        """Call `call` in the editor's loop, from any thread; false where no text is being edited."""
        app = self._session.app
        with suppress(RuntimeError):  # the text has just been sent, and the loop is closed
            if app.is_running and app.loop is not None and app.context is not None:
                app.loop.call_soon_threadsafe(call, context=app.context)
                return True
        return False

    def _end_now(self) -> None:
        app = self._session.app
        if self._ending is not None and app.is_running and not app.is_done:
            app.exit(exception=self._ending)

    def _write_waiting(self) -> None:
        with suppress(IndexError):
            while True:
                self._waiting.popleft()()


def command_completer() -> WordCompleter:
    """Complete a slash command at the start of the text."""
    summaries = {f"/{name}": command.summary for name, command in BY_NAME.items()}
    return WordCompleter(list(summaries), meta_dict=summaries, sentence=True)


def is_open_block(text: str) -> bool:
    """True where a text begun with triple quotes still lacks the closing ones."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


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


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter", filter=~completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        if is_open_block(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add("enter", filter=has_completions & completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
