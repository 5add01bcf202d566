"""Loading and leaving: garbage is not collected while torch is imported, and a process ends with what it has said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.program import environment, finish, start


def printed(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_what_was_imported_is_left_out_of_collections_which_go_on_after() -> None:
    said = printed(
        "import gc; from kvlite.llm.text_model import import_engine\n"
        "before = gc.get_stats()[2]['collections']\n"
        "import_engine()\n"
        "print(gc.get_stats()[2]['collections'] - before, gc.isenabled(), gc.get_freeze_count() > 100_000)\n"
        "gc.unfreeze(); import_engine(); print(gc.get_freeze_count())"
    )
    assert said == "0 True True\n0\n"


@pytest.mark.parametrize("loads", ["", "import torch; "])
def test_leaving_keeps_the_code_the_output_and_the_exit_handlers(loads: str) -> None:
    code = (
        f"{loads}import atexit; from kvlite.cli.process import leave\n"
        "atexit.register(print, 'handled'); print('said', end=' '); leave(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said handled\n", "")


def test_a_run_says_nothing_on_stderr_when_it_leaves() -> None:
    code, out, err = finish(start("run", "demo", "hi", "--quiet"))
    assert (code, err) == (0, "")
    assert out.strip()
