"""What the program may load before it knows what to do: every TAB starts it anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "transformers", "numpy", "bitsandbytes", "accelerate", "prompt_toolkit", "huggingface_hub", "rich"}


def loaded_by(args: list[str], **environment: str) -> set[str]:
    """The top-level packages that `kvlite ARGS` imports."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kvlite", *args],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\w+)", result.stderr, flags=re.MULTILINE))


def test_importtime_is_understood() -> None:
    assert {"typer", "kvlite"} <= loaded_by(["--help"])


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["--version", "--json"],
        ["run", "--help"],
        ["completion", "bash"],
        ["policies"],
    ],
    ids=" ".join,
)
def test_answers_without_anything_slow(args: list[str]) -> None:
    assert loaded_by(args) & SLOW == set()


@pytest.mark.parametrize(
    "line",
    ["kvlite ", "kvlite ru", "kvlite run --kv-", "kvlite run --kv-policy ", "kvlite run -m ", "kvlite chat "],
)
def test_completes_without_anything_slow(line: str) -> None:
    words = line.split(" ")
    complete = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    assert loaded_by([], _KVLITE_COMPLETE="complete_bash", **complete) & SLOW == set()
