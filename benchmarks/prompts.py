"""Prompts of a real model beside transformers' own attention, in turns in one process: processor time and ratios.

    python benchmarks/prompts.py ~/models/SmolLM2-135M-Instruct --out benchmarks/results/prompts-smollm2-cpu.json

The text is this repository's documentation. Every engine reads the whole prompt and gives the logits of its end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from kvlite.record.measure import versions
from peers.ours import Kvlite
from peers.peer import Case
from peers.shapes import behind_the_gate, sharing_weights

DOCS = Path(__file__).parents[1] / "docs"


def ids_of(folder: Path, count: int) -> list[int]:
    """The first `count` ids of the documentation."""
    text = "\n".join(path.read_text("utf-8") for path in sorted(DOCS.glob("*.md")))
    return AutoTokenizer.from_pretrained(folder).encode(text)[:count]


@torch.inference_mode()
def seconds_of_theirs(model: PreTrainedModel, ids: list[int]) -> float:
    """Processor time of the prompt in transformers."""
    start = time.process_time()
    model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    return time.process_time() - start


def main() -> None:
    """Measure in turns, print, and write the file that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--slots", type=int, action="append", help="default: 512, and room for all")
    parser.add_argument("--policy", action="append", help="default: replay, heavy-hitter and window")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype: torch.dtype = getattr(torch, options.dtype)
    theirs = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype, attn_implementation="sdpa").eval()
    ours = behind_the_gate(sharing_weights(theirs), dtype)
    ids = ids_of(options.folder, options.tokens)
    slots = options.slots or [512, 2 * options.tokens]
    peers = [
        (Kvlite(ours, policy), count)
        for policy in options.policy or ["replay", "heavy-hitter", "window"]
        for count in slots
    ]
    took: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        once = {"transformers": seconds_of_theirs(theirs, ids)}
        for peer, count in peers:
            once[f"{peer.policy}, {count} slots"] = peer.answer(ids, 1, Case(len(ids), count)).processor_s
            peer.close()
        for name, seconds in once.items() if number else ():  # the first round warms up
            took.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(found) for name, found in took.items()}
    ratios = {name: medians["transformers"] / seconds for name, seconds in medians.items()}
    for name, seconds in medians.items():
        print(f"{name:30} {seconds:7.3f} s  {ratios[name]:5.2f} of transformers' speed")
    if options.out is not None:
        told = {
            "command": ["python", *sys.argv],
            "processor": torch.cpu.get_capabilities().get("cpu_name", ""),
            "load": os.getloadavg(),
            "versions": versions(),
            "tokens": len(ids),
            "dtype": options.dtype,
            "threads": 1,
            "seconds": {name: sorted(found) for name, found in took.items()},
            "medians_s": medians,
            "ratios": ratios,
        }
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
