"""Compile every Triton kernel without a GPU and write a JSON line for each: registers, shared memory, spills, faults.

    python tests/parity/compile_kernels.py [--sm 75,80,86,89,90,120] [--dims 64,128,192/128,256] [--bits 0,8,6,4]

Slots of 0 bits hold numbers, fp16 or bf16; values are in 4 beside keys in 6. The kernels are launched as the product
launches them, on small tensors and with a driver that compiles for the architecture asked for and runs nothing. Needs
triton, whose own ptxas and cuobjdump it uses; TRITON_INTERPRET must not be set.
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

GROUP = 4  # query heads of a KV head


def measure(layer: Layer) -> Iterator[Compiled]:
    """Every kernel of a layer; of one launched several times, with different constants, the one of most registers."""
    launches = [layer.decode, layer.prefill]
    if not layer.bits:  # the others have nothing to do with what slots hold
        launches += [layer.between_products, layer.four_bit, layer.in_blocks]
    for launch in launches:
        found: dict[str, Compiled] = {}
        for kernel, made in compiled(layer.sm, launch):
            this = read(kernel, layer.sm, layer.dims, layer.bits, made)
            if kernel not in found or this.registers > found[kernel].registers:
                found[kernel] = this
        yield from found.values()


def main() -> None:
    """Write a line for each kernel."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels and write what they take.")
    parser.add_argument("--sm", default="75,80,86,89,90,120")
    parser.add_argument("--dims", default="64,128,192/128,256")
    parser.add_argument("--bits", default="0,8,6,4")
    given = parser.parse_args()
    numbers = [map(int, text.split(",")) for text in (given.sm, given.bits)]
    for sm, dims, bits in product(numbers[0], given.dims.split(","), numbers[1]):
        dim, _, v_dim = dims.partition("/")
        for made in measure(Layer(sm, int(dim), int(v_dim or dim), GROUP, bits)):
            sys.stdout.write(json.dumps({**asdict(made), "faults": made.faults}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
