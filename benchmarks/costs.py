"""The price of each part of the memory: time of a prompt and of a decoded token, and bytes, step by step as ratios.

    python benchmarks/costs.py MODEL [--slots 200,600] [--prompt 1000] [--tokens 200] [--rounds 3] [--out FILE]

The steps are those of `ablation.py`, each with the same number of slots, in turns, on one thread, by the process's own
CPU time; the first round warms up and medians count. All that an answer takes behind its first token is in the time of
a decoded token, what a policy hears again too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from ablation import STEPS, load_models
from kvlite.cache.policy import load_policy
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request, Token
from kvlite.evaluation.item import own_prose
from kvlite.evaluation.variant import Variant
from kvlite.memory.budget import Budget
from kvlite.record.measure import versions


def timed(engine: Engine, ids: tuple[int, ...], tokens: int) -> tuple[float, float]:
    """CPU seconds of the prompt with its first token, and of each token after it."""
    start, ends = time.process_time(), []
    for event in engine.run([Request("a", ids, max_tokens=tokens)]):
        if isinstance(event, Token):
            ends.append(time.process_time())
    end = time.process_time()
    engine.rows.reset(0)
    return ends[0] - start, (end - ends[0]) / (len(ends) - 1)


def main() -> None:
    """Measure all steps and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--slots", default="200,600")
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = load_models(given.model)
    ids = tuple(models["off"].text.raw(own_prose()[: 8 * given.prompt]).ids[: given.prompt])
    results = []
    for slots in given.slots.split(","):
        engines = {}
        for step in STEPS:
            policy, stored, profile = step
            model = models[profile]
            stored = model.loaded.shape.dtype if stored == "auto-dtype" else stored
            placed = Variant(load_policy(policy), Budget.parse(f"{slots}tok"), stored).place(
                model, given.prompt + given.tokens
            )
            engines[step] = placed.open(model.loaded, 1), placed.plan.reserved_bytes, stored
        taken: dict[tuple[str, ...], list[tuple[float, float]]] = {step: [] for step in STEPS}
        for number in range(given.rounds + 1):
            for step, (engine, _, _) in engines.items():
                found = timed(engine, ids, given.tokens)
                if number:
                    taken[step].append(found)
        base = [statistics.median(each) for each in zip(*taken[STEPS[0]], strict=True)]
        for step, (_, reserved, stored) in engines.items():
            prompt, decode = (statistics.median(each) for each in zip(*taken[step], strict=True))
            row = {
                "policy": step[0],
                "slots": stored,
                "profile": step[2],
                "slots_per_head": int(slots),
                "bytes": reserved,
                "prompt_s": round(prompt, 3),
                "prompt": round(prompt / base[0], 3),
                "decode_ms": round(1000 * decode, 2),
                "decode": round(decode / base[1], 3),
            }
            results.append(row)
            print(json.dumps(row), flush=True)
    if given.out:
        told = {
            "command": ["python", *sys.argv],
            "device": platform.processor() or platform.machine(),
            "versions": versions(),
            "threads": 1,
            "clock": "cpu",
            "results": results,
        }
        given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
