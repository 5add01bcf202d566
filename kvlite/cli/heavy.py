"""Torch and transformers are most of a short run: of its start, and of its end.

Importing them makes millions of objects, and Python looks through these for garbage again and again, also when it
takes the interpreter apart at the end. Neither finds anything.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def load_engine() -> None:
    """Import the engine and the loader without collecting garbage, and leave them out of later collections."""
    if "kvlite.models.loading" in sys.modules:
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        import kvlite.engine.engine
        import kvlite.models.loading  # noqa: F401
    finally:
        if collects:
            gc.enable()
    gc.freeze()
    atexit.register(gc.unfreeze)  # where the interpreter is taken apart, bindings complain of what is left over


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
