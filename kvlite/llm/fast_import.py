"""Imports torch and transformers with the garbage collector off, which saves a command about a second.

Importing them makes millions of objects, and Python looks through these again and again and finds nothing to free. For
commands, which own their process; `import kvlite` leaves the collector alone.
"""

from __future__ import annotations

import atexit
import gc
import sys


def import_engine() -> None:
    """Import the engine and the loader, and leave their objects out of later collections."""
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
