"""Decoding speed beside `transformers.generate`, in one run, as ratios.

    python benchmarks/decode.py --shape demo --device cpu --out benchmarks/results/decode-cpu.json

Random weights in the real shapes, random prompts, greedy, no end-of-sequence. Every engine in turn, several rounds,
medians. The ceiling is the same model with attention removed: what is left is the price of everything else. With
`--clock cpu` the process's own CPU time is taken, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kvlite.cache.group import PartGroup
from kvlite.cache.layer import Layer
from kvlite.cache.policy import load_policy
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request, Token
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import CacheSpec, plan_cache
from kvlite.models.loaded import LoadedModel
from kvlite.record.measure import versions
from peers.shapes import SHAPES, behind_the_gate, random_model


@dataclass(frozen=True)
class Case:
    """A prompt of `context` tokens under a budget of `slots` per KV head."""

    context: int
    slots: int


@dataclass(frozen=True)
class Result:
    """Tokens per second of each engine, and the ratio to transformers of the same run."""

    context: int
    slots: int
    policy: str
    kvlite: float
    transformers: float
    ceiling: float

    @property
    def ratio(self) -> float:
        return self.kvlite / self.transformers


def build(shape: str, device: torch.device, dtype: torch.dtype) -> tuple[LoadedModel, PreTrainedModel]:
    """The model behind kvlite's attention, and the same weights for transformers."""
    ours, theirs = random_model(shape, device, dtype), random_model(shape, device, dtype)
    return behind_the_gate(ours, dtype), theirs


def engine_for(loaded: LoadedModel, slots: int, policy_name: str) -> Engine:
    policy = load_policy(policy_name)
    dtype = str(loaded.dtype).removeprefix("torch.")
    spec = CacheSpec(slot_format("auto", dtype), policy.state_bytes_per_slot, policy.min_slots(), policy.evicts)
    plan = plan_cache(loaded.shape, Budget.parse(f"{slots}tok"), spec, free_bytes=None)
    return Engine(loaded, plan, policy, spec.slot_format)


def decode_ours(engine: Engine, prompt: list[int], tokens: int, clock: Callable[[], float]) -> float:
    """Tokens per second from the first token on."""
    events = engine.run([Request("a", tuple(prompt), max_tokens=tokens)])
    next(events)
    start = clock()
    count = sum(type(event) is Token for event in events)
    return count / (clock() - start)


def decode_theirs(model: PreTrainedModel, prompt: list[int], tokens: int, clock: Callable[[], float]) -> float:
    """As `decode_ours`: the time of `tokens` less the time of one, which is that of the prompt."""
    ids = torch.tensor([prompt], device=model.device)

    def seconds(count: int) -> float:
        start = clock()
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
                       eos_token_id=None, pad_token_id=0)  # type: ignore[misc]  # fmt: skip
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    first = seconds(1)
    return (tokens - 1) / (seconds(tokens) - first)


@contextmanager
def attention_removed() -> Iterator[None]:
    """Within the block layers neither attend nor store."""
    attend, place, evict = Layer.attend, PartGroup.place, PartGroup.evict
    Layer.attend = lambda self, q, k, v, step, geometry: q  # type: ignore[method-assign,assignment,return-value]
    PartGroup.place = PartGroup.evict = lambda self, step: None  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Layer.attend, PartGroup.place, PartGroup.evict = attend, place, evict  # type: ignore[method-assign]


def measure(
    models: tuple[LoadedModel, PreTrainedModel],
    case: Case,
    policy: str,
    tokens: int,
    rounds: int,
    clock: Callable[[], float],
) -> Result:
    loaded, theirs = models
    prompt = torch.randint(5, loaded.shape.vocab, (case.context,), generator=torch.Generator().manual_seed(1)).tolist()
    rates: dict[str, list[float]] = {"kvlite": [], "transformers": [], "ceiling": []}
    for number in range(rounds + 1):
        once = {"kvlite": decode_ours(engine_for(loaded, case.slots, policy), prompt, tokens, clock)}
        once["transformers"] = decode_theirs(theirs, prompt, tokens, clock)
        with attention_removed():
            once["ceiling"] = decode_ours(engine_for(loaded, case.slots, policy), prompt[:8], tokens, clock)
        for name, rate in once.items() if number else ():  # the first round warms up
            rates[name].append(rate)
    return Result(case.context, case.slots, policy, **{name: statistics.median(found) for name, found in rates.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--case", action="append", metavar="CONTEXT:SLOTS", help="may be given several times")
    parser.add_argument("--policy", default="heavy-hitter")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    models = build(options.shape, device, dtype)
    cases = [Case(*map(int, case.split(":"))) for case in options.case or ("2000:512", "100:8192")]
    results = [measure(models, case, options.policy, options.tokens, options.rounds, clock) for case in cases]
    print(f"{'context':>8} {'slots':>6} {'kvlite':>8} {'transformers':>13} {'ratio':>6} {'of ceiling':>11}")
    for result in results:
        print(
            f"{result.context:8,} {result.slots:6,} {result.kvlite:8.0f} {result.transformers:13.0f} "
            f"{result.ratio:5.2f}x {result.kvlite / result.ceiling:10.0%}"
        )
    if options.out is not None:
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
        )
        told = {
            "command": ["python", *sys.argv],
            "device": name,
            "versions": versions(),
            "shape": options.shape,
            "dtype": str(dtype).removeprefix("torch."),
            "threads": options.threads,
            "clock": options.clock,
            "results": [asdict(result) | {"ratio": result.ratio} for result in results],
        }
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
