"""The prompt at a terminal: history, several lines, completion of commands, the status line.

The only module that loads prompt_toolkit. Knows nothing of models: lines out, the status as a function in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import completion_is_selected, has_completions
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from kvlite.chat.commands import words
from kvlite.chat.loop import QUOTES


class Terminal:
    """Reads what the user types; Enter sends, Alt-Enter starts a new line."""

    def __init__(self, status: Callable[[], str] | None, history: Path | None, vi: bool = False) -> None:
        self._session: PromptSession[str] = PromptSession(
            message=">>> ",
            multiline=True,
            prompt_continuation="... ",
            history=_history(history),
            completer=CommandCompleter(),
            complete_while_typing=True,
            key_bindings=_bindings(),
            bottom_toolbar=status,
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            output=create_output(always_prefer_tty=True),  # an answer redirected to a file stays free of prompts
        )

    def read(self) -> str:
        """The next text; raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C."""
        return self._session.prompt()


class CommandCompleter(Completer):
    """Completes the word of a slash command at the start of the text."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/") and not any(character.isspace() for character in typed):
            for word, summary in words():
                if word.startswith(typed):
                    yield Completion(word, start_position=-len(typed), display_meta=summary)


def is_open_block(text: str) -> bool:
    """Whether a text begun with triple quotes still misses the closing ones."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


def _history(path: Path | None) -> History:
    """What was typed before, in a file only its owner reads; in memory when there is no such place."""
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
