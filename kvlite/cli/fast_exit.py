"""Ends the process without taking torch apart, which would cost a run about a second of processor time."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process with `code`: once torch is loaded, or while it loads, as soon as exit handlers have run."""
    if "torch" not in sys.modules and threading.active_count() == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # closed, or nobody reads it: `main` has said what there was to say
                stream.flush()
    os._exit(code)
