"""The trial of Triton's kernels at the head sizes, slot formats and dtypes of many models: right or wrong, how fast.

    python benchmarks/trial.py [--dims 64,128,256] [--bits 0,8,4] [--dtypes bfloat16,float16] [--slots 1024]

A line of JSON for each, at once: what `--kernels auto` would find on this device. Each dtype and number of channels has
a process of its own, so that one which dies or hangs costs no other. `--device cpu` interprets, with a few slots.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from itertools import product

import torch

from kvlite.models.kernel_trial import TrialProcess, TrialSetting
from kvlite_kernels.choice import obstacle
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.trial.task import MODULES, Part, SlotsPart, Task

KV_HEADS = {64: 2, 128: 8, 256: 4}
GROUP = 4
HIDDEN, INTERMEDIATE = 4096, 14336


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dims", default="64,128,256")
    parser.add_argument("--bits", default="0,8,4")
    parser.add_argument("--dtypes", default="bfloat16,float16")
    parser.add_argument("--slots", default="1024")
    parser.add_argument("--repeats", type=int, default=20, help="times that a kernel must give the same bits")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after this long")
    return parser.parse_args()


def tasks(given: argparse.Namespace) -> list[Task]:
    """A task for each dtype, number of channels and of slots; fused modules once for a dtype."""
    is_small, found = given.device == "cpu", []
    of_slots = [SlotsPart(int(bits), int(bits), Statistic.MASS) for bits in given.bits.split(",")]
    numbers = [map(int, text.split(",")) for text in (given.dims, given.slots)]
    for dtype, (dim, slots) in product(given.dtypes.split(","), product(*numbers)):
        kv_heads = 2 if is_small else KV_HEADS.get(dim, 8)
        is_first = not any(task.dtype == dtype for task in found)
        parts: list[Part] = [*([MODULES] if is_first else []), *of_slots]
        sizes = (64, 96) if is_small else (HIDDEN, INTERMEDIATE)
        heads = ((GROUP * kv_heads, kv_heads, dim, dim),)
        captures = not is_small
        found.append(Task(given.device, dtype, heads, *sizes, tuple(parts), captures, slots + 1, given.repeats))
    return found


def main() -> int:
    """Print what each trial comes to; 1 where a kernel is wrong."""
    given = arguments()
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    if (why := obstacle(torch.device(given.device))) is not None:
        sys.stderr.write(f"{why}\n")
        return 1
    end, is_right = time.monotonic() + 60 * given.minutes, True
    for task in tasks(given):
        process, left = TrialProcess(task, TrialSetting()), True
        while left and process.left:
            began = time.monotonic()
            part, outcome = process.next_outcome()
            is_right &= outcome.state == "right"
            told = {"kernels": str(part), "dtype": task.dtype, "dim": task.heads[0][2], "slots": task.keys - 1}
            told |= {"state": outcome.state, "gain": round(outcome.gain, 3), "why": outcome.why}
            print(json.dumps({**told, "seconds": round(time.monotonic() - began, 1)}), flush=True)
            left = time.monotonic() < end
        process.end()
        if not left:
            break
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
