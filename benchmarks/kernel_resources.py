"""What the compiler makes of every Triton kernel, on a machine without a GPU: registers, shared memory, spills.

    python benchmarks/kernel_resources.py [--sm 75,80,86,89,90,120] [--dims 128,192/128,256] [--group 4]
        [--bits 0,8,4] [--statistic mass] [--json]

Slots of 0 bits hold numbers, fp16 or bf16.

The kernels are launched as the product launches them, on small tensors and with a driver that compiles for the
architecture asked for and runs nothing. Needs triton, whose own ptxas and cuobjdump it uses; TRITON_INTERPRET must not
be set. Exits with 1 where a kernel breaks a limit of `resources/machine_code.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product

from resources.machine_code import Compiled, compiled, read
from resources.product import Layer

ARCHITECTURES = (75, 80, 86, 89, 90, 120)
ROW = "{:18} {:>5} {:>8} {:>5} {:>5} {:>7} {:>6} {:>7} {:>6} {:>7}  {}"


def measure(layer: Layer) -> Iterator[Compiled]:
    """Every kernel of a layer; of one launched several times, with different constants, the one of most registers."""
    launches = [layer.decode, layer.prefill]
    if not layer.bits:  # the others have nothing to do with what slots hold
        launches += [layer.between_products, layer.four_bit]
    for launch in launches:
        found: dict[str, Compiled] = {}
        for kernel, made in compiled(layer.sm, launch):
            this = read(kernel, layer.sm, layer.dims, layer.bits, made)
            if kernel not in found or this.registers > found[kernel].registers:
                found[kernel] = this
        yield from found.values()


def main() -> int:
    """Print a line for each kernel; 1 where one breaks a limit."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels and print what they take.")
    parser.add_argument("--sm", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--dims", default="64,128,192/128,256")
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--bits", default="0,8,4")
    parser.add_argument("--statistic", default="mass")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    numbers = [map(int, text.split(",")) for text in (given.sm, given.bits)]
    if not given.json:
        print(ROW.format("kernel", "sm", "D", "bits", "regs", "shared", "stack", "spills", "LD128", "MMA", "").rstrip())
    is_faulty = False
    for sm, dims, bits in product(numbers[0], given.dims.split(","), numbers[1]):
        dim, _, v_dim = dims.partition("/")
        for made in measure(Layer(sm, int(dim), int(v_dim or dim), given.group, bits, given.statistic)):
            is_faulty |= bool(made.faults)
            print(json.dumps({**asdict(made), "faults": made.faults}) if given.json else line(made), flush=True)
    return int(is_faulty)


def line(made: Compiled) -> str:
    """A kernel as one line of the table."""
    return ROW.format(*asdict(made).values(), "; ".join(made.faults)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
