"""Gains of each part of the memory, one at a time: slots by need, a score, replay, the slot format, the bias.

    python benchmarks/ablation.py MODEL [--suite needles] [--items 4] [--share 10,20] [--out FILE]

Suites and rows are those of `kvlite eval`, in kvlite's own engine: items are fed chunk by chunk under the budget, a
share of the bytes that the whole cache takes, and every question follows in a turn of its own. One item at a time.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from kvlite.cache.policy import load_policy
from kvlite.evaluation.asking import ask
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.variant import REFERENCE, Variant
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel, Told
from kvlite.memory.budget import Budget
from kvlite.options import ModelOptions

STEPS = (  # policy, format, profile
    ("window", "auto-dtype", "off"),
    ("window", "auto-dtype", "auto"),
    ("heavy-hitter", "auto-dtype", "auto"),
    ("replay:bias=false", "auto-dtype", "auto"),
    ("replay:bias=false", "k6v4", "auto"),
    ("replay:bias=true", "k6v4", "auto"),
    ("window", "k6v4", "auto"),
    ("heavy-hitter", "k6v4", "auto"),
    ("replay:bias=true", "int4", "auto"),
)
BESIDE = (("heavy-hitter", "auto-dtype", "off"), ("window", "int4", "off"), ("heavy-hitter", "int4", "auto"))


def load_models(name: str) -> dict[str, TextModel]:
    """The model by its profile: `off`, or its own with `auto`."""
    return {
        profile: TextModel.load(RunSpec.of(ModelOptions(model=name, profile=profile, think="off")), Told(print))
        for profile in ("off", "auto")
    }


def main() -> None:
    """Measure all steps and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--suite", default="needles")
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--share", default="10,20")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = load_models(given.model)
    text = models["off"].text
    items = [*enumerate(Suite(given.suite, given.items, 950).items(text))]
    longest = max(len(item.prefix) + max(len(question.ids) for question in item.questions) for _, item in items)
    results = []
    whole = [(REFERENCE, "auto", "off", "100")]
    parts = [
        (Variant(load_policy(policy), Budget.parse(f"{share}%"), stored), stored, profile, share)
        for share in given.share.split(",")
        for policy, stored, profile in STEPS + BESIDE
    ]
    for variant, stored, profile, share in whole + parts:
        model = models[profile]
        if stored == "auto-dtype":
            stored = model.loaded.shape.dtype
            variant = Variant(variant.policy, variant.budget, stored)
        placed = variant.place(model, longest)
        start, outcomes = time.process_time(), []
        for item in items:
            outcomes += [one for found in ask(placed.open(model.loaded, 1), text, [item]) for one in found.outcomes]
        row = {
            "policy": str(variant.policy),
            "slots": stored,
            "profile": profile,
            "share": int(share),
            "slots_per_head": placed.plan.slots,
            "right": sum(one.right for one in outcomes),
            "questions": len(outcomes),
            "nats": round(sum(one.nll for one in outcomes) / len(outcomes), 3),
            "cpu_s": round(time.process_time() - start, 1),
        }
        results.append(row)
        print(json.dumps(row), flush=True)
    if given.out:
        made_with = {name: version(name) for name in ("torch", "transformers")} | {"processor": platform.machine()}
        command = " ".join(["python", *sys.argv])
        given.out.write_text(
            json.dumps({"command": command, "made_with": made_with, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
