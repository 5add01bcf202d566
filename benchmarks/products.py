"""Products with 4-bit weights: Triton's kernels, bitsandbytes and plain halves, in the bytes of weights read a second.

    python benchmarks/products.py [--shapes 4096x4096,28672x4096,4096x14336] [--rows 1,8,32] [--dtype bfloat16]

A line of JSON for each shape (channels out x in) and number of rows, at once; what cannot run is named with the reason.
On a GPU each time is that of many products in a row in a CUDA graph, where none waits for its launch; `--device cpu`
interprets, which takes seconds and says nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

ROUNDS = 5
IN_A_ROW = 20


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median time of `work`, which ran before."""
    work()
    if device.type == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    graph, found = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(IN_A_ROW):
            work()
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / IN_A_ROW)
    return median(found)


def ways(shape: tuple[int, int], x: Tensor) -> dict[str, tuple[Callable[[], object], int]]:
    """Each way to multiply x with weights of a shape, and the bytes that its weights take."""
    import bitsandbytes
    from bitsandbytes.functional import quantize_4bit

    from kvlite_kernels.choice import choose_ops
    from kvlite_kernels.nf4 import FourBit

    weight = torch.randn(shape, device=x.device, dtype=x.dtype)
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    four_bit = FourBit(packed.view(shape[0], -1), state.absmax, state.code, state.blocksize)
    num_bytes = packed.nbytes + state.absmax.nbytes
    ops = choose_ops("triton", x.device)
    found = {
        "halves": (lambda: x @ weight.T, weight.nbytes),
        "bitsandbytes": (lambda: bitsandbytes.matmul_4bit(x, packed.view(-1, 1).t(), quant_state=state), num_bytes),
    }
    if len(x) <= ops.most_four_bit_rows(x.dtype):
        found["triton"] = (lambda: ops.multiply_four_bit(x, four_bit, None), num_bytes)
    return found


def main() -> None:
    """Print a line for each shape and number of rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", default="4096x4096,28672x4096,4096x14336")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    shapes = [tuple(map(int, text.split("x"))) for text in given.shapes.split(",")]
    for (outputs, channels), rows in product(shapes, map(int, given.rows.split(","))):
        x = torch.randn(rows, channels, device=device, dtype=dtype)
        told: dict[str, Any] = {"shape": f"{outputs}x{channels}", "rows": rows, "dtype": given.dtype}
        try:
            for name, (work, num_bytes) in ways((outputs, channels), x).items():
                took = seconds(work, device)
                told[name] = {"us": round(1e6 * took, 1), "gb_s": round(num_bytes / took / 1e9, 1)}
        except (ImportError, RuntimeError, ValueError) as error:
            told["not measured"] = str(error).partition("\n")[0]
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
