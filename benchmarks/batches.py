"""A file of prompts on one core: kvlite beside transformers' static batches and llama.cpp's slots.

    python benchmarks/batches.py FOLDER PROMPTS.jsonl --tokens 64 8:256@96 --gguf FILE.gguf --node-modules DIR \\
        --before CHECKOUT --out batches-cpu.json

FOLDER holds the model in bfloat16, FILE.gguf the same for llama.cpp; DIR is where `npm install node-llama-cpp` was run.
`64` asks for answers that end where the model ends them, after 64 tokens at most; `8:256@96` takes the first 96
prompts, each with a number of tokens of its own, which every engine generates to the last.

All have the same bytes for K and V and the same prompts, and compute greedily. transformers pads on the left, stops a
batch once each of its answers has ended, and takes lines sorted by their prompts, or by the tokens that they may need,
as many in each batch as fit; llama.cpp has as many slots as fit with the longest line of all, filled anew as they end.
Processor time of a process of its own, without loading; tokens of answers, without those that end them and without
padding. A checkout from before `min_tokens` ends answers where the model does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from one_batch import ROOT, environment, run_batch

Line = dict[str, Any]
ORDERS: dict[str, Callable[[Line], int]] = {
    "sorted by prompt": lambda line: len(line["ids"]),
    "sorted by need": lambda line: len(line["ids"]) + int(line["tokens"]),
}


def lines_of(path: Path, asked: str) -> list[Line]:
    """The prompts of a file, each with the most tokens of its answer and the least, as `asked`.

    Numbers of tokens are spread evenly over a range, in mixed order.
    """
    tokens, _, count = asked.partition("@")
    prompts = [json.loads(line)["prompt"] for line in path.read_text("utf-8").splitlines()]
    prompts = prompts[: int(count) if count else None]
    if ":" not in tokens:
        return [{"id": str(index), "prompt": one, "tokens": int(tokens)} for index, one in enumerate(prompts)]
    least, most = (int(one) for one in tokens.split(":"))
    steps = max(1, len(prompts) - 1)
    step = next(one for one in (7, 11, 13) if len(prompts) % one)
    spread = [least + (most - least) * (step * index % len(prompts)) // steps for index in range(len(prompts))]
    return [
        {"id": str(index), "prompt": one, "tokens": count, "least": count}
        for index, (one, count) in enumerate(zip(prompts, spread, strict=True))
    ]


@cache
def load_s(model: str, flags: tuple[str, ...], root: Path) -> float:
    """The processor seconds that one token takes; the first of two starts may check the model."""
    line = {"id": "0", "prompt": "Hi", "max_tokens": 1}
    return min(run_batch(model, [line], *flags, root=root).used_s for _ in range(2))


def kvlite(model: str, lines: list[Line], budget: int, *flags: str, root: Path = ROOT) -> dict[str, Any]:
    """Run `kvlite batch` of a checkout."""
    asked = [{"id": one["id"], "prompt": one["prompt"], "max_tokens": one["tokens"]} for one in lines]
    if "least" in lines[0]:
        asked = [one | {"min_tokens": one["max_tokens"]} for one in asked]
    options = ("--kv-budget", f"{budget}B", "--greedy", *flags)
    ran = run_batch(model, asked, *options, root=root)
    rows = rows_over_time(ran.report.get("timeline", []))
    return {
        "s": ran.used_s - load_s(model, options, root),
        "tokens": ran.summary["completion_tokens"] - 1,
        "rows": rows,
    }


def rows_over_time(timeline: list[dict[str, Any]], points: int = 16) -> dict[str, Any]:
    """The share of the rows that answer, on the mean over time, and how many of how many at some moments."""
    known = [point for point in timeline if point.get("rows")]
    if len(known) < 2:
        return {}
    spans = [(after["t_s"] - here["t_s"], here["rows_used"] / here["rows"]) for here, after in pairwise(known)]
    some = known[:: max(1, len(known) // points)]
    return {
        "mean_share": round(sum(span * share for span, share in spans) / max(1e-9, sum(span for span, _ in spans)), 3),
        "used_of": " ".join(f"{point['t_s']:.0f}s:{point['rows_used']}/{point['rows']}" for point in some),
    }


def static(model: str, lines: list[Line], budget: int, order: str) -> dict[str, Any]:
    """Run transformers' generate on static batches, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ends = held.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    batches, tokens, start = [*batches_of(sorted(lines, key=ORDERS[order]), budget)], 0, time.process_time()
    for some in batches:
        batch = tokenizer.pad({"input_ids": [one["ids"] for one in some]}, return_tensors="pt")
        most = max(one["tokens"] for one in some)
        asked = {"max_new_tokens": most, "min_new_tokens": most if "least" in some[0] else None, "do_sample": False}
        said = held.generate(**batch, **asked)[:, batch["input_ids"].shape[1] :].tolist()
        for one, ids in zip(some, said, strict=True):
            own = ids[: one["tokens"]]
            tokens += next((place for place, token in enumerate(own) if token in ends), len(own))
    return {"s": time.process_time() - start, "tokens": tokens, "rows": [len(some) for some in batches]}


def batches_of(lines: list[Line], budget: int) -> Iterator[list[Line]]:
    """Cut lines into batches of as many as fit, all as long as the longest prompt and answer of their batch."""
    batch: list[Line] = []
    for line in lines:
        longer = [*batch, line]
        width = max(len(one["ids"]) for one in longer) + max(one["tokens"] for one in longer)
        if batch and width * len(longer) * line["bytes"] > budget:
            yield batch
            longer = [line]
        batch = longer
    yield batch


def slots_of(lines: list[Line], budget: int) -> int:
    """Count the rows that hold the longest prompt and answer in the budget."""
    longest = max(len(one["ids"]) for one in lines) + max(one["tokens"] for one in lines)
    return max(1, int(budget // (longest * lines[0]["bytes"])))


def with_ids(model: str, lines: list[Line]) -> list[Line]:
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


def engines(options: argparse.Namespace, lines: list[Line], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """The ways to answer the lines, which are also in the file `work`."""

    def child(*command: str) -> dict[str, Any]:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def sorted_by(order: str) -> Callable[[], dict[str, Any]]:
        asked = ("--child", str(work), "--order", order, "--budget", str(options.budget))
        return lambda: child(sys.executable, __file__, options.folder, str(options.prompts), *asked)

    of_all: dict[str, Callable[[], dict[str, Any]]] = {
        "kvlite": lambda: kvlite(options.folder, lines, options.budget),
        "kvlite, bfloat16 slots": lambda: kvlite(options.folder, lines, options.budget, "--kv-dtype", "bfloat16"),
    }
    orders = [*ORDERS][: 1 + any(one["tokens"] != lines[0]["tokens"] for one in lines)]
    of_all |= {f"transformers, {order}": sorted_by(order) for order in orders}
    if options.gguf:
        of_all["kvlite, GGUF"] = lambda: kvlite(options.gguf, lines, options.budget)
    if options.gguf and options.node_modules:
        script, modules = str(Path(__file__).with_name("llama_slots.mjs")), str(options.node_modules.absolute())
        slots = str(slots_of(lines, options.budget))
        of_all["llama.cpp, slots"] = lambda: child("node", script, modules, options.gguf, str(work), slots)
    if options.before:
        of_all["kvlite, before"] = lambda: kvlite(options.folder, lines, options.budget, root=options.before)
    return of_all


def main() -> None:
    """Measure the engines in turns, print a line for each, and write the file where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--gguf")
    parser.add_argument("--node-modules", type=Path, metavar="DIR")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an earlier commit of kvlite, beside this one")
    parser.add_argument("--tokens", nargs="+", default=["8:256@48"], metavar="MOST|LEAST:MOST[@LINES]")
    parser.add_argument("--budget", type=int, default=20_000_000, help="bytes of K and V")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engines", nargs="+", default=[""], help="only those whose names begin with one of these")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--order", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        lines = json.loads(options.child.read_text("utf-8"))
        print(json.dumps(static(options.folder, lines, options.budget, options.order)))
        return
    record: dict[str, Any] = {
        "prompts": options.prompts.name, "budget_bytes": options.budget, "model": Path(options.folder).name,
        "gguf": Path(options.gguf).name if options.gguf else None,
        "processor": platform.processor() or platform.machine(), "load": os.getloadavg(), "files": {},
    }  # fmt: skip
    for asked in options.tokens:
        lines = with_ids(options.folder, lines_of(options.prompts, asked))
        print(f"{len(lines)} prompts, {asked} tokens", flush=True)
        found: dict[str, Any] = {}
        record["files"][asked] = {"lines": len(lines), "engines": found}
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / "work.json"
            work.write_text(json.dumps(lines), "utf-8")
            for _ in range(options.rounds):
                for name, run in engines(options, lines, work).items():
                    if not name.startswith(tuple(options.engines)):
                        continue
                    one = found.setdefault(name, {"tokens_per_s": 0.0, "rounds": []})
                    one["rounds"].append(run() | {"load": os.getloadavg()[0]})
                    one["tokens_per_s"] = round(median(each["tokens"] / each["s"] for each in one["rounds"]), 1)
                    print(f"{name:34} {one['tokens_per_s']:6.1f} tok/s", flush=True)
                    if options.out:
                        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
