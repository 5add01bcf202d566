"""Every Triton kernel compiles for every architecture it is for, inside what a block may have; nothing of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")

pytestmark = pytest.mark.matrix
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("compile_kernels.py")
ON_SLOTS = {"split", "finish", "attend", "column_sums", "evict"}
KERNELS = ON_SLOTS | {"join_residual", "rotate_heads", "gate", "multiply_one", "multiply_many", "add_parts"}
KERNELS |= {"multiply_blocks_one", "multiply_blocks_many"}
PATHS = [str(ROOT), str(ROOT / "kernels")]


def resources(tmp_path: Path, *arguments: str) -> list[dict[str, object]]:
    """Compile in a process that does not interpret and finds nothing compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(PATHS), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sm", "75,80,86,89,90,120", "--dims", "128", "--bits", "0"),  # what most models have, everywhere
        ("--sm", "75,86,90", "--dims", "128", "--bits", "8,6,4"),
        ("--sm", "86", "--dims", "256", "--bits", "0,8"),  # the widest, where shared memory is least
    ],
    ids=["every architecture", "low-bit slots", "the widest"],
)
def test_kernels_keep_inside_what_a_block_may_have(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    made = resources(tmp_path, *arguments)
    assert {kernel["kernel"] for kernel in made} >= (KERNELS if arguments[-1][0] == "0" else ON_SLOTS)
    assert [kernel for kernel in made if kernel["faults"]] == []
