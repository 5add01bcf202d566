"""How fast 4-bit weights are multiplied: bitsandbytes' kernels and ours, beside a dense product and a copy.

    python benchmarks/nf4.py [--model llama-3.1-8b] [--rows 1,4,16,32] [--out FILE.json]

Every linear shape of a model's layers, queries, keys and values and gate and up joined, random weights in NF4 with fp32
scales. One run measures everything, in turn, several rounds, medians. GB/s counts the bytes of weights, once, whatever
the rows; the copy is of a tensor that no cache holds, reads and writes counted. Weights go round among copies that
together exceed the caches. Where bitsandbytes stays under 70 % of the copy is said at the end. On a CPU the kernels run
in Triton's interpreter (TRITON_INTERPRET=1), which shows that this script works and nothing else: give `--tiny`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from kvlite.record.measure import installed_versions
from kvlite_kernels.backend import KernelsUnavailable
from kvlite_kernels.choice import choose_ops
from kvlite_kernels.nf4 import FourBit

SHAPES = {
    "llama-2-7b": {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)},
    "llama-3.1-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
    "qwen2.5-0.5b": {"qkv": (1152, 896), "o": (896, 896), "gate_up": (9728, 896), "down": (896, 4864)},
    "tiny": {"qkv": (96, 64), "down": (40, 192)},
}
"""Outputs and channels of the linear maps of one layer."""

BLOCK = 64
CACHE_BYTES = 200_000_000
ENOUGH = 0.7
"""Share of the copy's bandwidth below which a kernel of our own is worth while."""


@dataclass(frozen=True)
class Result:
    """GB/s of weights read for one shape and number of rows; `dense` is of plain weights, `copy` the ceiling."""

    model: str
    shape: str
    outputs: int
    channels: int
    rows: int
    bitsandbytes: float
    kvlite: float | None
    dense: float
    copy: float


@dataclass(frozen=True)
class Bench:
    """Where and how often to measure."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    calls: int
    cache_bytes: int

    def seconds(self, calls: list[Callable[[], object]]) -> float:
        """The time of one of `calls`, which are made in turn; on CUDA replayed from a graph, without launch costs."""
        if self.device.type != "cuda":
            return self._timed(lambda: [calls[i % len(calls)]() for i in range(self.calls)])
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):  # a first call compiles and allocates
            for call in calls:
                call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(self.calls):
                calls[i % len(calls)]()
        return self._timed(graph.replay)

    def _timed(self, run: Callable[[], object]) -> float:
        self._wait(run)
        times = []
        for _ in range(self.rounds):
            start = time.perf_counter()
            self._wait(run)
            times.append(time.perf_counter() - start)
        return statistics.median(times) / self.calls

    def _wait(self, run: Callable[[], object]) -> None:
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def copies(self, num_bytes: int) -> int:
        """How many tensors of so many bytes it takes for none to stay in a cache."""
        return max(1, min(self.calls, -(-2 * self.cache_bytes // num_bytes)))


def copy_rate(bench: Bench) -> float:
    """GB/s of a device copy, reads and writes."""
    source = torch.empty(4 * bench.cache_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / bench.seconds([lambda: target.copy_(source)]) / 1e9


def measure(bench: Bench, model: str, rows: list[int]) -> Iterator[Result]:
    """One result for each shape of `model` and number of rows."""
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import quantize_4bit

    ops, ceiling = choose_ops("triton", bench.device), copy_rate(bench)
    for name, (outputs, channels) in SHAPES[model].items():
        wide = torch.randn(outputs, channels, dtype=bench.dtype, device=bench.device)
        packed, state = quantize_4bit(wide, blocksize=BLOCK, quant_type="nf4")
        num_bytes = packed.nbytes + state.absmax.nbytes
        packs = [(packed.clone(), copied(state)) for _ in range(bench.copies(num_bytes))]
        wides = [wide.clone() for _ in range(bench.copies(wide.nbytes))]
        ours = [FourBit(pack.view(outputs, -1), of_pack.absmax, state.code, BLOCK) for pack, of_pack in packs]
        for count in rows:
            x = torch.randn(count, channels, dtype=bench.dtype, device=bench.device)

            def rate(num_bytes: int, calls: list[Callable[[], object]]) -> float:
                return num_bytes / bench.seconds(calls) / 1e9

            served = [call(ops.multiply_four_bit, x, weight, None) for weight in ours]
            yield Result(
                model, name, outputs, channels, count,
                bitsandbytes=rate(num_bytes, [call(matmul_4bit, x, *pack) for pack in packs]),
                kvlite=rate(num_bytes, served) if count <= ops.most_four_bit_rows(bench.dtype) else None,
                dense=rate(wide.nbytes, [call(linear, x, weight) for weight in wides]),
                copy=ceiling,
            )  # fmt: skip


def copied(state: Any) -> Any:
    """A QuantState with scales of its own."""
    state = copy.copy(state)
    state.absmax = state.absmax.clone()
    return state


def call(function: Callable[..., Tensor], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def table(results: list[Result]) -> Iterator[str]:
    """Lines for people: rates, and their share of the copy's."""
    yield f"copy: {results[0].copy:.0f} GB/s"
    heads = "".join(f" {name:>14}" for name in ("bitsandbytes", "kvlite", "dense"))
    yield f"{'model':13} {'shape':8} {'outputs':>8} {'channels':>8} {'rows':>4}{heads}"
    for result in results:
        rates = (result.bitsandbytes, result.kvlite, result.dense)
        told = (f"{'-':>14}" if rate is None else f"{rate:8.1f} {rate / result.copy:5.0%}" for rate in rates)
        yield (
            f"{result.model:13} {result.shape:8} {result.outputs:8,} {result.channels:8,} {result.rows:4} "
            + " ".join(told)
        )
    slow = [result for result in results if result.bitsandbytes < ENOUGH * result.copy]
    yield f"bitsandbytes is under {ENOUGH:.0%} of the copy in {len(slow)} of {len(results)} cases:"
    for result in slow:
        better = result.kvlite is not None and result.kvlite > result.bitsandbytes
        yield f"  {result.model} {result.shape}, {result.rows} rows: kvlite is {'faster' if better else 'no faster'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", action="append", choices=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--rows", default="1,4,16,32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=50, help="products in one round")
    parser.add_argument("--tiny", action="store_true", help="small shapes, once, to see that it runs")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    bench = Bench(device, dtype, given.rounds, given.calls, CACHE_BYTES)
    if given.tiny:
        bench = Bench(device, dtype, rounds=1, calls=1, cache_bytes=1000)
    models = ["tiny"] if given.tiny else given.model or [name for name in SHAPES if name != "tiny"]
    rows = [int(count) for count in given.rows.split(",")]
    try:
        choose_ops("triton", device)
    except KernelsUnavailable as error:
        parser.error(str(error))
    with torch.inference_mode():
        results = [result for model in models for result in measure(bench, model, rows)]
    print("\n".join(table(results)))
    if given.out is not None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        told = {
            "command": ["python", *sys.argv],
            "device": name,
            "versions": installed_versions(),
            "dtype": given.dtype,
            "results": [asdict(result) for result in results],
        }
        given.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
