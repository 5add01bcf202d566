"""Keys typed while an answer comes: edited as at the prompt, and there when the next prompt is.

Loads prompt_toolkit. Knows nothing of screens or of answers.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.keys import Keys

from kvlite.chat.loop import Pasted

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPress

END = "\x04"
"""Among the lines that are sent: the user wants to leave."""


class TypedAhead:
    """The text being typed, and the lines already sent, oldest first."""

    def __init__(self) -> None:
        self.sent: deque[str] = deque()
        self.wants_to_stop = False
        """Ctrl-Z was pressed, which stops the process until the shell lets it go on."""
        self._buffer = Buffer(multiline=True)
        self._is_pasted = self._is_escaped = False
        self._parser = Vt100Parser(self._press)
        self._decoder = getincrementaldecoder("utf-8")("surrogateescape")

    @property
    def text(self) -> str:
        """The text not sent yet."""
        return Pasted(self._buffer.text) if self._is_pasted else self._buffer.text

    def feed(self, data: bytes) -> None:
        """Take what the terminal sends."""
        self._parser.feed(self._decoder.decode(data))

    def flush(self) -> None:
        """Take a lone Escape for what it is: nothing follows it."""
        self._parser.flush()

    def take(self) -> str:
        """Return the text not sent yet, and begin another."""
        text = self.text
        self._buffer.reset()
        self._is_pasted = False
        return text

    def put(self, text: str) -> None:
        """Put `text` before what is typed."""
        self._buffer.text = text + self._buffer.text
        self._buffer.cursor_position = len(self._buffer.text)

    @property
    def waiting(self) -> list[str]:
        """The lines that were sent, to be shown; the end of the chat in a word."""
        return ["leave" if line == END else line for line in self.sent]

    def unsend(self) -> None:
        """Make the lines that were sent part of the text again: what they waited for was stopped."""
        lines = [line for line in self.sent if line != END]
        self._is_pasted = self._is_pasted or any(isinstance(line, Pasted) for line in lines)
        text = "\n".join([*lines, *filter(None, [self._buffer.text])])
        self.sent.clear()
        self._buffer.text, self._buffer.cursor_position = text, len(text)

    def _press(self, press: KeyPress) -> None:
        key, buffer = press.key, self._buffer
        was_escaped, self._is_escaped = self._is_escaped, key == Keys.Escape
        if key == Keys.BracketedPaste:
            self._is_pasted = True
            buffer.insert_text(press.data.replace("\r\n", "\n").replace("\r", "\n"))
        elif key in (Keys.ControlM, Keys.ControlJ):
            if was_escaped:
                buffer.insert_text("\n")
            elif buffer.text.strip():
                self.sent.append(self.take())
        elif key == Keys.ControlD:
            if buffer.text:
                buffer.delete()
            else:
                self.sent.append(END)
        elif key == Keys.ControlZ:
            self.wants_to_stop = True
        elif isinstance(key, Keys):
            _EDITS.get(key, _ignore)(buffer)
        elif key.isprintable():
            buffer.insert_text(key)
        self._is_pasted = self._is_pasted and bool(buffer.text)


def _kill_line(buffer: Buffer) -> None:
    buffer.delete_before_cursor(buffer.cursor_position)


def _kill_word(buffer: Buffer) -> None:
    start = buffer.document.find_start_of_previous_word(WORD=True) or 0
    buffer.delete_before_cursor(-start)


def _go(buffer: Buffer, position: int) -> None:
    buffer.cursor_position = position


def _ignore(buffer: Buffer) -> None:
    pass


_EDITS: dict[Keys, Callable[[Buffer], object]] = {
    Keys.ControlH: lambda buffer: buffer.delete_before_cursor(),
    Keys.Delete: lambda buffer: buffer.delete(),
    Keys.ControlU: _kill_line,
    Keys.ControlW: _kill_word,
    Keys.Left: lambda buffer: buffer.cursor_left(),
    Keys.Right: lambda buffer: buffer.cursor_right(),
    Keys.Home: lambda buffer: _go(buffer, 0),
    Keys.ControlA: lambda buffer: _go(buffer, 0),
    Keys.End: lambda buffer: _go(buffer, len(buffer.text)),
    Keys.ControlE: lambda buffer: _go(buffer, len(buffer.text)),
}
