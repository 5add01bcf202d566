"""Load the model in the background while the first prompt is open; a failure of loading ends the prompt."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from kvlite.chat.interrupt import Interrupts

if TYPE_CHECKING:
    from kvlite.chat.terminal import Terminal
    from kvlite.console import Console

T = TypeVar("T")


class BackgroundLoad(Generic[T]):
    """Work in a thread that ends with the process, while lines are read from `terminal`.

    Until the work is done, `console` writes above the line being edited.
    """

    def __init__(self, work: Callable[[], T], terminal: Terminal, console: Console) -> None:
        self._found: Future[T] = Future()
        self._work = work
        self._terminal = terminal
        self._console = console
        console.around = terminal.above
        Thread(target=self._run, name="loading", daemon=True).start()

    @property
    def is_done(self) -> bool:
        return self._found.done()

    def line(self) -> str | None:
        """Read the first line that is sent; None where the user leaves. Raises the error of the work."""
        interrupts = Interrupts()
        while True:
            interrupts.check()
            try:
                line = self._terminal.read()
            except EOFError:
                if self.is_done:
                    self._found.result()  # the work may itself have failed with an EOFError
                return None
            except KeyboardInterrupt:
                interrupts.press()
            else:
                if line.strip():
                    return line

    def result(self) -> T:
        """Wait for the work, showing that it goes on, and return its result; raises the error of the work."""
        with self._console.progress() as progress:
            if not self.is_done:
                progress.update("loading…")
            try:
                return self._found.result()
            except BaseException:
                self._terminal.discard()
                raise
            finally:
                self._console.around = lambda write: write()

    def _run(self) -> None:
        try:
            self._found.set_result(self._work())
        except BaseException as error:
            self._found.set_exception(error)
            self._terminal.end(error)
        else:
            self._terminal.redraw()
