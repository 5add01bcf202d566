"""Loading behind the first prompt: what is typed meanwhile waits for the model, what fails ends the prompt."""

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


class Behind(Generic[T]):
    """Runs `work` in a thread that ends with the process, while lines are read from `terminal`.

    `console` writes above the line being edited until the result is there.
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
        """The first line that is sent, None where the user leaves instead. Raises what the work raises meanwhile."""
        interrupts = Interrupts()
        while True:
            interrupts.check()
            try:
                line = self._terminal.read()
            except EOFError:
                if self.is_done:
                    self._found.result()  # which may have failed with an EOFError of its own
                return None
            except KeyboardInterrupt:
                interrupts.press()
            else:
                if line.strip():
                    return line

    def result(self) -> T:
        """What the work came to; waits for it, and says so, or raises what it raised."""
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
            found = self._work()
        except BaseException as error:
            self._found.set_exception(error)
            self._terminal.end(error)
        else:
            self._found.set_result(found)
            self._terminal.redraw()
