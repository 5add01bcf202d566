"""kvlite as a process of its own: for signals, pipes and limits, which a test cannot try on itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "kvlite")


def environment() -> dict[str, str]:
    """This process's environment, in which `python -m kvlite` is the checkout's.

    No bytecode is written: under a limit on file sizes Python 3.11 leaves a truncated file that later runs trip over.
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}


def start(*args: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """`kvlite args`; its stderr is a pipe, so is its stdout unless told otherwise."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([*COMMAND, *args], env=environment(), **{**streams, **kwargs})


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that ends by itself."""
    out, err = process.communicate(timeout=120)
    return process.returncode, (out or b"").decode(), err.decode()
