"""What the compiler makes of every Triton kernel, on a machine without a GPU: registers, shared memory, spills.

    python benchmarks/kernel_resources.py [--sm 75,80,86,89,90,120] [--dims 128,192/128,256] [--group 4]
        [--bits 0,8,4] [--statistic mass] [--json]

Slots of 0 bits hold numbers, fp16 or bf16.

The kernels are launched as the product launches them, on small tensors and with a driver that compiles for the
architecture asked for and runs nothing. Needs triton, whose own ptxas and cuobjdump it uses; TRITON_INTERPRET must not
be set. Exits with 1 where a kernel breaks a limit of `LIMITS`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kvlite_kernels.dense import ACTIVATIONS, Norm
from kvlite_kernels.int8 import EightBit
from kvlite_kernels.kinds import Noise, Rank, Statistic
from kvlite_kernels.nf4 import FourBit
from kvlite_kernels.reference import Geometry, Segment, Vectors
from kvlite_kernels.slots import Arriving, Held, Ranking
from kvlite_kernels.statistic import Measure
from kvlite_kernels.triton_set.attention import attend_many, attend_one
from kvlite_kernels.triton_set.dense import TRITON_DENSE
from kvlite_kernels.triton_set.products import TritonCodedProducts, TritonProducts
from kvlite_kernels.triton_set.scratch import Scratch
from kvlite_kernels.triton_set.tiles import Processor
from kvlite_kernels.triton_set.writing import evict, insert, move, quantise

ARCHITECTURES = (75, 80, 86, 89, 90, 120)
SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""What one block may have, in bytes."""

LIMITS = {"split": 168, "finish": 96, "attend": 255, "column_sums": 168, "join_residual": 128, "rotate_heads": 96}
LIMITS |= {"multiply_one": 128, "multiply_many": 128, "multiply_one_int8": 128, "multiply_many_int8": 128}
"""Most registers a thread of a kernel may take from compute capability 8.0 on, so that several blocks share a
multiprocessor; 64 for the kernels that are not named."""

TENSOR_CORES = ("split", "attend", "column_sums", "multiply_many", "multiply_many_int8")
"""Kernels that multiply matrices."""

WIDE_LOADS = (*TENSOR_CORES, "join_residual", "rotate_heads", "gate", "multiply_one", "multiply_one_int8")
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


def read(kernel: str, layer: Layer, made: Any) -> Compiled:
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
        sm=layer.sm,
        dims=layer.dims,
        bits=layer.bits,
        registers=int(resources[1]),
        shared_bytes=made.metadata.shared,
        stack_bytes=int(resources[2]),
        spills=count(r"\b(?:LDL|STL)\b"),
        loads=count(r"\b(?:LDG\.E|LDGSTS)\S*\.128"),
        tensor_ops=count(r"\b(?:HMMA|HGMMA)\b"),
    )


@dataclass(frozen=True)
class Layer:
    """The sizes of one attention layer, on an architecture; slots of 0 `bits` hold numbers."""

    sm: int
    dim: int
    v_dim: int
    group: int
    bits: int = 0
    statistic: str = "mass"
    kv_heads: int = 2
    slots: int = 512
    tokens: int = 64
    hidden: int = 16384

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.sm < 80 else torch.bfloat16

    @property
    def dims(self) -> str:
        return f"{self.dim}/{self.v_dim}" if self.dim != self.v_dim else str(self.dim)

    def measure(self, tokens: int) -> Measure:
        return Measure(Statistic(self.statistic), torch.ones(1, tokens), noise=Noise(0, 1.0, 2.0, 100))

    def held(self) -> Held:
        heads = (1, self.kv_heads, self.slots + 1)
        k, v = (self.slots_of(torch.zeros(*heads, dim)) for dim in (self.dim, self.v_dim))
        pos, rot, order = (torch.zeros(heads, dtype=torch.int32) for _ in range(3))
        return Held(k, v, pos, rot, torch.zeros(heads), order)

    def slots_of(self, x: torch.Tensor) -> Vectors:
        """Vectors as slots hold them; a kernel codes them."""
        return quantise(x, self.bits, min(32, x.shape[-1] & -x.shape[-1])) if self.bits else x.to(self.dtype)

    def new(self, tokens: int) -> Arriving:
        dtype = torch.float32 if self.bits else self.dtype
        k, v = (torch.zeros(1, tokens, self.kv_heads, d, dtype=dtype).transpose(1, 2) for d in (self.dim, self.v_dim))
        pos, rot = (torch.zeros(1, tokens, dtype=torch.int32) for _ in range(2))
        return Arriving(k, v, pos, rot, None)

    def decode(self) -> None:
        """One token against full slots."""
        heads = self.kv_heads * self.group
        held, new, geometry = self.held(), self.new(1), Geometry(0.1)
        scratch = Scratch(1, heads, self.group, self.slots + 1, self.v_dim, Processor(self.sm, 64), torch.device("cpu"))
        q = torch.zeros(1, heads, 1, self.dim, dtype=self.dtype)
        ranking = Ranking(Rank("age", 1024), 8, 4, self.slots) if self.statistic == "mass" else None
        insert(held, new, slice(self.slots, self.slots + 1))
        segment, asked = Segment(held.k, held.v, held.pos), self.measure(1)
        attend_one(q, new.pos, segment, geometry, scratch, asked, held.statistic, None, ranking)
        move(held, scratch, 1)
        ranked = Ranking(Rank("age", 1024, 9), 8, 4, self.slots, pins=torch.zeros(1, 2, 2, dtype=torch.int32))
        evict(held, slice(0, 1), 1, new.pos, ranked, None)

    def prefill(self) -> None:
        """A chunk against full slots."""
        held, new = self.held(), self.new(self.tokens)
        q = torch.zeros(1, self.kv_heads * self.group, self.tokens, self.dim, dtype=self.dtype)
        slots = Segment(held.k[:, :, :-1], held.v[:, :, :-1], held.pos[:, :, :-1])
        chunk = [self.slots_of(x) for x in (new.k, new.v)]
        segments = [slots, Segment(*chunk, new.pos[:, None])]
        asked = self.measure(self.tokens)
        attend_many(q, new.pos, segments, Geometry(0.1), self.sm, asked)
        insert(held, new, torch.zeros(1, self.kv_heads, self.tokens, dtype=torch.int64))

    def between_products(self) -> None:
        """The element-wise kernels at their heaviest: both norms, normed heads, the most costly activation."""
        x, counts = torch.zeros(1, 1, self.hidden, dtype=self.dtype), (self.kv_heads * self.group, self.kv_heads)
        norm = Norm(torch.zeros(self.hidden), 1e-6)  # fp32, as an offset makes it
        TRITON_DENSE.add_norm(x, x, norm, norm)
        heads = torch.zeros(1, 1, sum(counts) + self.kv_heads, self.dim, dtype=self.dtype)
        cos = torch.zeros(1, 1, self.dim, dtype=self.dtype)
        of_heads = Norm(torch.zeros(self.dim, dtype=self.dtype), 1e-6)
        TRITON_DENSE.rotate(heads, counts, cos, cos, norms=(of_heads, of_heads))
        for activation in ACTIVATIONS:
            TRITON_DENSE.gated(x, activation)

    def four_bit(self) -> None:
        """Products of one row and of many, over channels that are cut into parts and over whole ones."""
        products, channels = TritonProducts(Processor(self.sm, 64)), 1024
        for outputs in (256, 16384):
            packed = torch.zeros(outputs, channels // 2, dtype=torch.uint8)
            weight = FourBit(packed, torch.zeros(outputs * channels // 64), torch.zeros(16), 64)
            for rows in {1, min(16, products.most_rows), products.most_rows}:
                products(torch.zeros(rows, channels, dtype=self.dtype), weight, torch.zeros(outputs, dtype=self.dtype))

    def eight_bit(self) -> None:
        """Products of one row and of many with weights in 8 bits."""
        products, weight = TritonCodedProducts(Processor(self.sm, 64)), torch.zeros(16384, 1024, dtype=torch.int8)
        for rows in {1, min(16, products.most_rows), products.most_rows}:
            products(torch.zeros(rows, 1024, dtype=self.dtype), EightBit(weight, torch.zeros(16384)))


def measure(layer: Layer) -> Iterator[Compiled]:
    """Every kernel of a layer; of one launched several times, with different constants, the one of most registers."""
    launches = [layer.decode, layer.prefill]
    if not layer.bits:  # the others have nothing to do with what slots hold
        launches += [layer.between_products, layer.four_bit, layer.eight_bit]
    for launch in launches:
        found: dict[str, Compiled] = {}
        for kernel, made in compiled(layer.sm, launch):
            this = read(kernel, layer, made)
            if kernel not in found or this.registers > found[kernel].registers:
                found[kernel] = this
        yield from found.values()


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels and print what they take.")
    parser.add_argument("--sm", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--dims", default="64,128,192/128,256")
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--bits", default="0,8,4")
    parser.add_argument("--statistic", default="mass")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    faulty = False
    row = "{:12} {:>5} {:>8} {:>5} {:>5} {:>7} {:>6} {:>7} {:>6} {:>7}  {}"
    head = row.format("kernel", "sm", "D", "bits", "regs", "shared", "stack", "spills", "LD128", "MMA", "")
    print(head.rstrip() if not given.json else "", end="\n" if not given.json else "")
    for sm, dims, bits in product(
        map(int, given.sm.split(",")), given.dims.split(","), map(int, given.bits.split(","))
    ):
        dim, _, v_dim = dims.partition("/")
        for made in measure(Layer(sm, int(dim), int(v_dim or dim), given.group, bits, given.statistic)):
            faulty |= bool(made.faults)
            if given.json:
                line = json.dumps({**asdict(made), "faults": made.faults})
            else:
                numbers = (made.registers, made.shared_bytes, made.stack_bytes, made.spills, made.loads)
                line = row.format(
                    made.kernel, sm, made.dims, bits, *numbers, made.tensor_ops, "; ".join(made.faults)
                ).rstrip()
            print(line, flush=True)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
