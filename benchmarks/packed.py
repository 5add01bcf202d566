"""Packed weights on one core beside transformers and llama.cpp, by processor time, each in a process of its own.

    python benchmarks/packed.py FOLDER FILE.gguf --node-modules DIR --out benchmarks/results/packed-cpu.json

FOLDER holds the model in bfloat16, FILE.gguf the same in GGUF. DIR is where `npm install node-llama-cpp` was run;
without it llama.cpp is left out. Engines take turns, and medians of the rounds are reported. An answer of kvlite is so
long that its policy hears it twice; the median step is that of a token without that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

CONTEXTS = {128: "1000tok", 2000: "512tok"}
"""Tokens before the answer, and the KV budget of kvlite; the others keep everything."""
VOCAB = 49000
FEWER = 64
"""Tokens of an answer of transformers, whose steps are all alike."""


def kvlite(model: str, quant: str, tokens: int) -> dict[str, Any]:
    """Measure kvlite."""
    from kvlite import LLM
    from kvlite.engine.request import Request, Sampling

    took: dict[str, Any] = {"step_s": {}, "median_step_s": {}, "prompt_s": {}}
    for length, budget in CONTEXTS.items():
        start = time.process_time()
        with LLM(model, quant=quant, kv_budget=budget, speculate="off") as llm:
            took["load_s"] = time.process_time() - start
            took["weight_bytes"] = llm.model.loaded.weight_bytes
            list(llm.engine.run([Request("a", prompt(128), Sampling(), max_tokens=8)]))  # warms up
            since = time.process_time()
            events = llm.engine.run([Request("a", prompt(length), Sampling(), max_tokens=tokens + 1)])
            next(events)
            times = [time.process_time()]
            times += [time.process_time() for _ in events]
            took["prompt_s"][length] = times[0] - since
            took["step_s"][length] = (times[-1] - times[0]) / (len(times) - 1)
            took["median_step_s"][length] = median(end - start for start, end in pairwise(times))
    return took


def transformers(model: str, tokens: int) -> dict[str, Any]:
    """Measure transformers with its default cache and attention, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    start = time.process_time()
    held = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    took: dict[str, Any] = {"load_s": time.process_time() - start, "step_s": {}, "prompt_s": {}}
    took["weight_bytes"] = sum(one.nbytes for one in held.parameters())
    with torch.inference_mode():
        held(torch.tensor([prompt(128)]), use_cache=True, logits_to_keep=1)  # warms up
        for length in CONTEXTS:
            since = time.process_time()
            out = held(torch.tensor([prompt(length)]), use_cache=True, logits_to_keep=1)
            took["prompt_s"][length] = time.process_time() - since
            since = time.process_time()
            for _ in range(min(tokens, FEWER)):
                ids = out.logits[:, -1:].argmax(-1)
                out = held(ids, past_key_values=out.past_key_values, use_cache=True)
            took["step_s"][length] = (time.process_time() - since) / min(tokens, FEWER)
    return took


def prompt(length: int) -> tuple[int, ...]:
    """Ids from all over the vocabulary."""
    return tuple((7919 * i + 11) % VOCAB for i in range(length))


def child(name: str, model: str, tokens: int) -> None:
    """Measure one engine in this process."""
    took = transformers(model, tokens) if name == "transformers" else kvlite(model, name, tokens)
    took["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(took))


def main() -> None:
    """Measure the engines in turns, print a table, and write the file where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("gguf")
    parser.add_argument("--node-modules", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--engines", metavar="A;B", help="some of those that the table names; default: all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.tokens)
        return
    here = [sys.executable, __file__]
    engines: dict[str, list[str]] = {
        "transformers, bfloat16": [*here, options.folder, "-", "--child", "transformers"],
        "kvlite, bfloat16": [*here, options.folder, "-", "--child", "none"],
        "kvlite, 8bit": [*here, options.folder, "-", "--child", "8bit"],
        "kvlite, 4bit": [*here, options.folder, "-", "--child", "4bit"],
        "kvlite, GGUF": [*here, options.gguf, "-", "--child", "none"],
    }
    engines = {name: [*command, "--tokens", str(options.tokens)] for name, command in engines.items()}
    if options.node_modules:
        script = str(Path(__file__).with_name("llama.mjs"))
        lengths = [str(length) for length in CONTEXTS]
        where = str(options.node_modules.absolute())
        engines["llama.cpp, GGUF"] = ["node", script, where, options.gguf, str(options.tokens), *lengths]
    chosen = options.engines.split(";") if options.engines else list(engines)
    if strange := set(chosen) - set(engines):
        parser.error(f"--engines: {', '.join(sorted(strange))} is none of {'; '.join(engines)}")
    engines = {name: engines[name] for name in chosen}
    rounds: dict[str, list[Any]] = {name: [] for name in engines}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number in range(1, options.rounds + 1):
        for name, command in engines.items():
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
        measured = {name: summary(found) for name, found in rounds.items()}
        record = {
            "file": Path(options.gguf).name,
            "processor": platform.processor() or platform.machine(),
            "load": os.getloadavg(),
            "rounds": number,
            "tokens": options.tokens,
            "engines": measured,
            "ratios": ratios(measured),
        }
        if options.out:  # after each round, so that nothing is lost where one fails
            options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(measured))
    for name, found in ratios(measured).items():
        print(name, ", ".join(f"{what} {ratio:.2f}" for what, ratio in found.items()))


def summary(rounds: list[Any]) -> dict[str, Any]:
    """The medians of rounds."""
    found: dict[str, Any] = {
        name: median(one[name] for one in rounds)
        for name in ("load_s", "peak_bytes", "weight_bytes")
        if name in rounds[0]
    }
    for name in ("step_s", "median_step_s", "prompt_s"):
        found[name] = {length: median(one[name][length] for one in rounds) for length in rounds[0].get(name, {})}
    found["steps_s"] = [one["step_s"] for one in rounds]
    return found


def ratios(engines: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Speeds of kvlite over those of the others, by engine; of a median step besides, which leaves out the hearing."""
    found: dict[str, dict[str, float]] = {}
    for name, one in engines.items():
        for other in ("transformers, bfloat16", "llama.cpp, GGUF"):
            if not name.startswith("kvlite") or other not in engines:
                continue
            mine = found[f"{name} / {other}"] = {}
            for length, seconds in engines[other]["step_s"].items():
                mine[f"after {length}"] = seconds / one["step_s"][length]
                mine[f"after {length}, median step"] = seconds / one["median_step_s"][length]
                mine[f"prompt of {length}"] = engines[other]["prompt_s"][length] / one["prompt_s"][length]
    return found


def table(engines: dict[str, Any]) -> str:
    """The engines, a row each."""
    lines = [
        "| engine | after 128: tok/s | after 2,000: tok/s | prompt of 2,000: tok/s | loaded in | peak |",
        "|---" * 6 + "|",
    ]
    for name, one in engines.items():
        steps, prompts = one["step_s"], one["prompt_s"]
        lines.append(
            f"| {name} | {1 / steps['128']:.0f} | {1 / steps['2000']:.0f} | {2000 / prompts['2000']:,.0f} | "
            f"{one['load_s']:.1f} s | {one['peak_bytes'] / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
