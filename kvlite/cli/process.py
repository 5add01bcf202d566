"""The process that a command runs in: its signals, its streams, and its end."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

from kvlite.errors import Interrupted, Terminated, TimeLimit

_SOON_S = 0.01


def leave(code: int) -> NoReturn:
    """End the process with `code`: once torch is loaded, or while it loads, as soon as exit handlers have run.

    Taking torch apart would cost a run about a second of processor time.
    """
    if "torch" not in sys.modules and threading.active_count() == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # closed, or nobody reads it: `main` has said what there was to say
                stream.flush()
    os._exit(code)


def write_utf8() -> None:
    """Make stdout and stderr UTF-8 whatever the locale; what is no text becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def drop_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush has nothing to complain about."""
    with suppress(OSError, ValueError, AttributeError):  # no stdout, or one without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _leave_terminal() -> None:
    """Send what is written to the terminal nowhere: it is closed, and what ends the program still says so."""
    for file in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(file).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, file)
                os.close(nowhere)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that is closed, end the program the way Ctrl-C does: files are closed.

    Where Python dropped what a signal raised, because it was raised in a destructor, the signal is sent once more.
    """

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        raise Terminated("terminated")

    def on_dropped(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, TimeLimit):
            return  # its alarm rings again by itself
        if not isinstance(dropped.exc_value, (KeyboardInterrupt, Interrupted, Terminated)):
            hook(dropped)
            return
        number = signal.SIGTERM if isinstance(dropped.exc_value, Terminated) else signal.SIGINT
        again = threading.Timer(_SOON_S, _thread.interrupt_main, (number,))
        again.daemon = True
        again.start()

    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set a handler
    ending = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    ending = [number for number in ending if is_main and signal.getsignal(number) != signal.SIG_IGN]  # as nohup asks
    handlers = {number: signal.signal(number, stop) for number in ending}
    hook, sys.unraisablehook = sys.unraisablehook, on_dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for ended, handler in handlers.items():
            signal.signal(ended, handler)
