"""The lines below an answer while it comes: the cache as it is now, and what is typed for the next prompt.

The answer is written above them and stays; the lines are drawn again and again, from the place where the answer goes
on, which the terminal itself remembers.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from typing import TYPE_CHECKING

from kvlite.chat.gauge import gauge
from kvlite.chat.words import clipped, sgr
from kvlite.console import strip_controls
from kvlite.record.table import width_of

if TYPE_CHECKING:
    from kvlite.chat.typed_ahead import TypedAhead
    from kvlite.console import Console
    from kvlite.memory.counts import KVCounts

DRAW_EVERY_S = 0.2
_ERASE_BELOW = "\x1b[J"
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_MOST_SENT = 3  # lines that wait, as far as they are shown


class LiveLines:
    """Writes an answer to a terminal with lines below it; `counts` are those of the cache, None shows no such line."""

    def __init__(self, console: Console, counts: Callable[[], KVCounts] | None, ahead: TypedAhead) -> None:
        self.activity = ""
        """The words for what goes on where no token comes yet."""
        self.ahead = ahead
        self._console, self._counts = console, counts
        self._lock = Lock()
        self._is_line_open = False
        self._began_s = 0.0
        self._decoding: tuple[float, int] | None = None  # since when, and the tokens seen then

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return shutil.get_terminal_size().columns

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the lines, and read what is typed, within the block."""
        self._began_s, self._decoding, self._is_line_open = time.monotonic(), None, False
        around, self._console.around = self._console.around, self.around
        stop, wake = os.pipe()
        with _keys_unread_by_the_shell() as keys:
            thread = Thread(target=self._watch, args=(keys, stop), name="live lines", daemon=True)
            thread.start()
            try:
                yield
            finally:
                os.close(wake)
                thread.join()
                os.close(stop)
                self._console.around = around
                with self._lock:
                    self._console.draw(_ERASE_BELOW + (_PASTE_OFF if keys is not None else ""))

    def write(self, text: str) -> None:
        """Write on: drawn text, which fits the lines of the terminal."""
        with self._lock:
            if self._decoding is None and self._counts is not None:
                self._decoding = time.monotonic(), self._counts().tokens_seen
            self._draw(text)

    def around(self, write: Callable[[], None]) -> None:
        """Call `write`, which writes lines, so that they stand above the live lines and on lines of their own."""
        with self._lock:
            self._console.draw(_ERASE_BELOW + ("\n" if self._is_line_open else ""))
            self._is_line_open = False
            write()
            self._draw("")

    def _watch(self, keys: Keyboard | None, stop: int) -> None:
        """Read what is typed, and draw the lines again now and then, until `stop` is closed."""
        if keys is not None:
            self._console.draw(_PASTE_ON)
        while True:
            ready, _, _ = select.select([stop, *([] if keys is None else [keys.file])], [], [], DRAW_EVERY_S)
            if stop in ready:
                return
            data = b""
            if keys is not None and keys.file in ready:
                with suppress(OSError):
                    data = os.read(keys.file, 65536)
                self.ahead.feed(data)
                if self.ahead.wants_to_stop:
                    self.ahead.wants_to_stop = False
                    self._stop(keys)
                if not data:
                    keys = None  # the terminal is gone
            else:
                self.ahead.flush()
            with self._lock, suppress(Exception):  # nothing here is worth an answer
                self._draw("")

    def _stop(self, keys: Keyboard) -> None:
        """Leave the terminal to the shell, and take it again once the shell lets the process go on."""
        with self._lock:
            self._console.draw(_ERASE_BELOW + _PASTE_OFF + ("\n" if self._is_line_open else ""))
            self._is_line_open = False
            keys.leave()
            os.killpg(0, signal.SIGTSTP)  # all of the job, as the terminal would
            time.sleep(DRAW_EVERY_S)  # in which the process is stopped
            keys.take()
            self._console.draw(_PASTE_ON)

    def _draw(self, text: str) -> None:
        """Write `text` and the lines below it in one go."""
        if text:
            self._is_line_open = not text.endswith("\n")
        lines = self._lines()
        below = ""
        if lines:  # move down first: where that scrolls, the place to come back to is the one after it
            below = (
                "\x1bD" * len(lines) + f"\x1b[{len(lines)}A\x1b7" + "".join(f"\r\n{line}" for line in lines) + "\x1b8"
            )
        self._console.draw(_ERASE_BELOW + text + below)

    def _lines(self) -> list[str]:
        width = max(1, self.width - 1)
        lines = [] if self._counts is None else [sgr(gauge(self._counts(), width, self._extras()), "2")]
        sent, text = self.ahead.waiting, self.ahead.text
        lines += [
            sgr(clipped(strip_controls(f"next: {line}").split("\n")[0], width), "2") for line in sent[:_MOST_SENT]
        ]
        if len(sent) > _MOST_SENT:
            lines.append(sgr(f"and {len(sent) - _MOST_SENT} more", "2"))
        if text:
            *before, last = text.split("\n")
            count = f"[{len(before) + 1:,} lines] " if before else ""
            lines.append(f">>> {_end(count + last, width - 6)}▏")
        return lines

    def _extras(self) -> tuple[str, ...]:
        if self._decoding is None or self._counts is None:
            return (self.activity or f"reading, {time.monotonic() - self._began_s:.0f} s",)
        since, seen = self._decoding
        now = time.monotonic()
        tokens = self._counts().tokens_seen - seen
        return (self.activity, f"{tokens / (now - since):.0f} tok/s" if now > since and tokens > 1 else "")


class Keyboard:
    """The terminal `file` on which keys come as they are pressed, without an echo, from `take` to `leave`.

    Ctrl-C stays a signal, which does not take what was typed with it; Ctrl-Z is a key.
    """

    def __init__(self, file: int) -> None:
        import termios

        self.file = file
        self._before, self._own = termios.tcgetattr(file), termios.tcgetattr(file)
        self._own[3] = self._own[3] & ~(termios.ICANON | termios.ECHO | termios.IEXTEN) | termios.NOFLSH
        self._own[6][termios.VSUSP] = os.fpathconf(file, "PC_VDISABLE").to_bytes(1, "little")

    def take(self) -> None:
        """Let keys come as they are pressed."""
        import termios

        termios.tcsetattr(self.file, termios.TCSANOW, self._own)

    def leave(self) -> None:
        """Leave the terminal as it was found, if it is still there."""
        import termios

        with suppress(termios.error):
            termios.tcsetattr(self.file, termios.TCSANOW, self._before)


@contextmanager
def _keys_unread_by_the_shell() -> Iterator[Keyboard | None]:
    """Take the keyboard within the block; None where stdin is no terminal."""
    try:
        import termios

        keys = Keyboard(sys.stdin.fileno())
    except ImportError:
        yield None
        return
    except (termios.error, OSError, ValueError):
        yield None
        return
    keys.take()
    try:
        yield keys
    finally:
        keys.leave()


def _end(text: str, width: int) -> str:
    """The end of a line, at most so many columns."""
    text = strip_controls(text)
    while text and width_of(text) > width:
        text = text[max(1, (width_of(text) - width) // 2) :]
    return text
