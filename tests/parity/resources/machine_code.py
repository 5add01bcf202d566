"""Compiling without a GPU what a function launches, counting what is in the machine code, and the limits for it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""What one block may have, in bytes."""

LIMITS = {"split": 168, "finish": 96, "attend": 255, "column_sums": 168, "join_residual": 128, "rotate_heads": 96}
LIMITS |= {"multiply_one": 128, "multiply_many": 128, "multiply_blocks_one": 96, "multiply_blocks_many": 128}
"""Most registers a thread of a kernel may take from compute capability 8.0 on, so that several blocks share a
multiprocessor; 64 for the kernels that are not named."""

TENSOR_CORES = ("split", "attend", "column_sums", "multiply_many", "multiply_blocks_many")
"""Kernels that multiply matrices."""

WIDE_LOADS = (*TENSOR_CORES, "join_residual", "rotate_heads", "gate", "multiply_one")
"""Kernels that live by loads of 16 bytes."""

SMALL_TILES = ("attend", "column_sums")
"""Of these, those whose tiles are too small for such loads before 8.0, where products are slow."""

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture; `loads` are instructions that load 16 bytes, `spills` those to local memory."""

    kernel: str
    sm: int
    dims: str
    bits: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    spills: int
    loads: int
    tensor_ops: int

    @property
    def faults(self) -> list[str]:
        """The limits it breaks."""
        faults = []
        limit = 255 if self.sm < 80 else LIMITS.get(self.kernel, 64)
        if self.registers > limit:
            faults.append(f"{self.registers} registers, at most {limit}")
        if self.shared_bytes > SHARED_BYTES[self.sm]:
            faults.append(f"{self.shared_bytes} bytes of shared memory, at most {SHARED_BYTES[self.sm]}")
        if self.spills or self.stack_bytes:
            faults.append(f"{self.spills} spills, {self.stack_bytes} bytes of stack")
        is_small = self.kernel in SMALL_TILES and self.sm < 80
        if self.kernel in WIDE_LOADS and not is_small and not self.loads:
            faults.append("no load of 16 bytes")
        if self.kernel in TENSOR_CORES and self.sm >= 80 and not self.tensor_ops:
            faults.append("no tensor-core instruction")
        return faults


class CompileOnly:
    """A driver of Triton for a device that is not there."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return self.sm

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(sm: int, launch: Callable[[], None]) -> Iterator[tuple[str, Any]]:
    """The kernels that `launch` would have run on architecture `sm`, by name."""
    found: list[tuple[str, Any]] = []

    def compile_only(self: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **options: found.append((self.__name__, self.warmup(*args, grid=grid, **options)))

    launched, JITFunction.__getitem__ = JITFunction.__getitem__, compile_only
    driver.set_active(CompileOnly(sm))
    try:
        launch()
    finally:
        JITFunction.__getitem__ = launched
    yield from found


def read(kernel: str, sm: int, dims: str, bits: int, made: Any) -> Compiled:
    """Count what is in the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    resources = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert resources is not None, usage

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    return Compiled(
        kernel=kernel,
        sm=sm,
        dims=dims,
        bits=bits,
        registers=int(resources[1]),
        shared_bytes=made.metadata.shared,
        stack_bytes=int(resources[2]),
        spills=count(r"\b(?:LDL|STL)\b"),
        loads=count(r"\b(?:LDG\.E|LDGSTS)\S*\.128"),
        tensor_ops=count(r"\b(?:HMMA|HGMMA)\b"),
    )
