"""A file of prompts with answers of many lengths, on one core: kvlite beside static batches and llama.cpp's slots.

    python benchmarks/batches.py FOLDER PROMPTS.jsonl --gguf FILE.gguf --node-modules DIR --out batches-cpu.json

FOLDER holds the model in bfloat16, FILE.gguf the same for llama.cpp; DIR is where `npm install node-llama-cpp` was run.
All have the same bytes for K and V, the same prompts, and for each the same number of tokens to generate. transformers
takes the lines in order, as many at once as fit with the longest of all, and each batch runs until its longest answer
ends; llama.cpp has as many slots, filled anew as they end. Processor time of a process of its own, without loading. A
checkout from before `min_tokens` ends answers where the model does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def lines_of(path: Path, count: int, spread: str) -> list[dict[str, Any]]:
    """The first `count` prompts, each with the tokens to generate, spread evenly over a range in mixed order."""
    least, most = (int(one) for one in spread.split(":"))
    prompts = [json.loads(line)["prompt"] for line in path.read_text("utf-8").splitlines()[:count]]
    steps = max(1, len(prompts) - 1)
    mixed = [(7 * index) % len(prompts) if len(prompts) % 7 else index for index in range(len(prompts))]
    return [
        {"id": str(index), "prompt": prompt, "tokens": least + (most - least) * place // steps}
        for index, (prompt, place) in enumerate(zip(prompts, mixed, strict=True))
    ]


def kvlite(model: str, lines: list[dict[str, Any]], budget: int, extra: list[str], root: Path = ROOT) -> dict[str, Any]:
    """Run `kvlite batch` of a checkout, and once more for one token, which is taken for the time to load."""
    took: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, some in (("load", [lines[0] | {"tokens": 1}]), ("all", lines)):
            ends = ("jsonl", "out.jsonl", "json", "run.json")
            source, out, summary, record = (Path(folder) / f"{name}.{end}" for end in ends)
            fields = [
                {"id": one["id"], "prompt": one["prompt"], "max_tokens": one["tokens"], "min_tokens": one["tokens"]}
                for one in some
            ]
            source.write_text("".join(json.dumps(one) + "\n" for one in fields), "utf-8")
            command = [
                sys.executable,
                "-m",
                "kvlite",
                "batch",
                str(source),
                "-m",
                str(Path(model).absolute()),
                "--kv-budget",
                f"{budget}B",
            ]
            command += ["-o", str(out), "--greedy", "--summary", str(summary), "--progress", "none", *extra]
            command += ["--report", str(record)]
            before = _children_s()
            subprocess.run(command, check=True, capture_output=True, env=_environment(root), cwd=root)
            took[name] = _children_s() - before
            took["rows"] = rows_over_time(json.loads(record.read_text("utf-8")).get("timeline", []))
            took[f"{name} tokens"] = json.loads(summary.read_text("utf-8"))["completion_tokens"]
    return {"s": took["all"] - took["load"], "tokens": took["all tokens"] - 1, "rows": took["rows"]}


def rows_over_time(timeline: list[dict[str, Any]], points: int = 16) -> dict[str, Any]:
    """The share of the rows that answer, on the mean over time, and how many of how many at some moments."""
    known = [point for point in timeline if point.get("rows")]
    if len(known) < 2:
        return {}
    spans = [(after["t_s"] - here["t_s"], here["rows_used"] / here["rows"]) for here, after in pairwise(known)]
    some = known[:: max(1, len(known) // points)]
    return {
        "mean_share": round(sum(span * share for span, share in spans) / max(1e-9, sum(span for span, _ in spans)), 3),
        "used_of": [[round(point["t_s"], 1), point["rows_used"], point["rows"]] for point in some],
    }


def static(model: str, lines: list[dict[str, Any]], budget: int) -> dict[str, Any]:
    """Run transformers' generate on static batches, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = rows_of(lines, budget)
    start = time.process_time()
    for first in range(0, len(lines), rows):
        some = lines[first : first + rows]
        batch = tokenizer.pad({"input_ids": [one["ids"] for one in some]}, return_tensors="pt")
        most = max(one["tokens"] for one in some)
        held.generate(**batch, max_new_tokens=most, min_new_tokens=most, do_sample=False)
    tokens = sum(one["tokens"] for one in lines)
    return {"s": time.process_time() - start, "tokens": tokens, "rows": rows}


def rows_of(lines: list[dict[str, Any]], budget: int) -> int:
    """Count the rows that hold the longest prompt and answer in the budget."""
    longest = max(len(one["ids"]) for one in lines) + max(one["tokens"] for one in lines)
    return max(1, int(budget // (longest * lines[0]["bytes"])))


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(root: Path = ROOT) -> dict[str, str]:
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def _with_ids(model: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines with the ids of their prompts and the bytes of K and V of a token in bfloat16."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(model), AutoConfig.from_pretrained(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim

    def ids(prompt: str) -> list[int]:
        messages = [{"role": "user", "content": prompt}]
        found: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return list(found["input_ids"])

    return [one | {"ids": ids(one["prompt"]), "bytes": size} for one in lines]


def main() -> None:
    """Measure the engines in turns, print a line for each, and write the file where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--gguf")
    parser.add_argument("--node-modules", type=Path, metavar="DIR")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an earlier commit of kvlite, beside this one")
    parser.add_argument("--lines", type=int, default=48)
    parser.add_argument("--tokens", default="8:256", metavar="LEAST:MOST")
    parser.add_argument("--budget", type=int, default=20_000_000, help="bytes of K and V")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(static(options.folder, json.loads(options.child.read_text("utf-8")), options.budget)))
        return
    lines = _with_ids(options.folder, lines_of(options.prompts, options.lines, options.tokens))
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work.json"
        work.write_text(json.dumps(lines), "utf-8")
        engines: dict[str, list[str]] = {
            "transformers, static batches": [
                sys.executable, __file__, options.folder, str(options.prompts), "--child", str(work),
                "--budget", str(options.budget),
            ],
        }  # fmt: skip
        if options.gguf and options.node_modules:
            script = Path(__file__).with_name("llama_slots.mjs")
            modules = str(options.node_modules.absolute())
            rows = str(rows_of(lines, options.budget))
            engines["llama.cpp, slots"] = ["node", str(script), modules, options.gguf, str(work), rows]
        for _ in range(options.rounds):
            found.setdefault("kvlite", []).append(kvlite(options.folder, lines, options.budget, []))
            exact = ["--kv-dtype", "bfloat16"]
            found.setdefault("kvlite, bfloat16 slots", []).append(kvlite(options.folder, lines, options.budget, exact))
            if options.before:
                before = kvlite(options.folder, lines, options.budget, [], options.before)
                found.setdefault("kvlite, before", []).append(before)
            if options.gguf:
                found.setdefault("kvlite, GGUF", []).append(kvlite(options.gguf, lines, options.budget, []))
            for name, command in engines.items():
                done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
                found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    record = {
        "lines": len(lines), "tokens": options.tokens, "budget_bytes": options.budget,
        "gguf": Path(options.gguf).name if options.gguf else None,
        "processor": platform.processor() or platform.machine(), "load": os.getloadavg(),
        "engines": {
            name: {"tokens_per_s": median(one["tokens"] / one["s"] for one in rounds), "rounds": rounds}
            for name, rounds in found.items()
        },
    }  # fmt: skip
    for name, one in record["engines"].items():
        print(f"{name:30} {one['tokens_per_s']:6.1f} tok/s")
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
