"""Exact heavy hitters over a tier of four bits, at equal bytes: is demoting before dropping worth it?

    OMP_NUM_THREADS=1 python benchmarks/tiers.py demo --budget 5,10,20

Of each head's S slots the best `h` by the policy stay in bfloat16, all others are rounded to int4 once, when they leave
the exact tier, and a token never returns to it. A share of exact slots and a budget give S: h bfloat16 slots and S - h
int4 slots, with the policy's state and positions, and one staging slot. Shares of 0 and 100 % are kvlite's own int4 and
bfloat16 slots, int8 stands beside. The exact tier is a cache of h slots under the same policy: its recent window and
sinks are those of h.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

from kvlite.cache.policy import load_policy
from kvlite.console import Console
from kvlite.evaluation.evaluation import Measured, SuiteResult
from kvlite.evaluation.intervals import Estimate
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.summary import Line, summarise
from kvlite.evaluation.tasks import REFERENCE, Result, Subject, Task
from kvlite.evaluation.variant import Placed, Variant
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel
from kvlite.memory.budget import Budget
from kvlite.memory.format import human_bytes
from kvlite.memory.shape import ModelShape
from kvlite.options import ModelOptions
from kvlite.record.measure import installed_versions
from tiered_slots import Tiered, num_exact, tiered


def arms(variant: Variant, shares: Sequence[Fraction], shape: ModelShape, tokens: int) -> Iterator[tuple[str, Placed]]:
    """What is compared at one budget, by name: uniform slots, and both tiers at each share."""
    yield "int4", replace(variant, kv_dtype="int4").place(shape, tokens, tokens)
    budget_bytes = variant.place(shape, tokens, tokens).plan.budget_bytes
    for share in shares:
        yield f"{float(share):.0%} exact", tiered(variant, share, shape, budget_bytes)
    for name in ("bfloat16", "int8"):
        yield name, replace(variant, kv_dtype=name).place(shape, tokens, tokens)


def measured(task: Task, placed: Placed) -> Measured:
    """The results of all of a task's conversations or texts."""
    count = len(task.material)
    rows = task.rows(placed, count)
    measure, results = task.open(placed, rows), list[Result]()
    for start in range(0, count, rows):
        steps = measure(range(start, min(start + rows, count)))
        while True:
            try:
                next(steps)
            except StopIteration as end:
                results += end.value
                break
    return Measured(placed, tuple(results))


@dataclass(frozen=True)
class Found:
    """One line of the table."""

    suite: str
    budget: str
    slots_hold: str
    num_exact: int | None
    slots: int
    T: int
    reserved_bytes: int
    figures: dict[str, Estimate]


def compare(subject: Subject, suite: Suite, variants: Sequence[Variant], shares: Sequence[Fraction]) -> Iterator[Found]:
    """The lines of one suite: the full cache first, whose longest conversation the budgets are shares of."""
    task, shape = Task.of(subject, suite), subject.loaded.shape
    reference = measured(task, task.place(REFERENCE, task.tokens))
    tokens = max(result.tokens for result in reference.results)

    def line(each: Measured) -> Line:
        return summarise(SuiteResult(suite, tokens, shape.full_cache_bytes(tokens), (reference, each))).lines[1]

    yield _found(suite, "everything", str(subject.loaded.dtype).removeprefix("torch."), line(reference))
    for variant in variants:
        for name, placed in arms(variant, shares, shape, tokens):
            yield _found(suite, str(variant.budget), name, line(measured(task, placed)))


def _found(suite: Suite, budget: str, name: str, line: Line) -> Found:
    placed, plan = line.placed, line.placed.plan
    exact = num_exact(placed.share, plan.slots) if isinstance(placed, Tiered) else None
    return Found(suite.name, budget, name, exact, plan.slots, plan.chunk, plan.reserved_bytes, line.figures)


def show(found: Found) -> None:
    """One line of the table on stdout."""
    exact = "" if found.num_exact is None else str(found.num_exact)
    figures = "  ".join(f"{name} {_text(name, value)}" for name, value in found.figures.items())
    size = human_bytes(found.reserved_bytes)
    print(
        f"{found.suite:7} {found.budget:>10}  {found.slots_hold:10} {exact:>5} {found.slots:6,} {found.T:4} {size:>8}  "
        f"{figures}",
        flush=True,
    )


def _text(name: str, value: Estimate) -> str:
    if name in ("kl", "perplexity"):
        return f"{value.value:.4f} [{value.low:.4f}-{value.high:.4f}]"
    return f"{value.value:.1%} [{value.low * 100:.1f}-{value.high * 100:.1f}]"


def subject_of(model: str) -> Subject:
    """The model, quietly."""
    return Subject.of(TextModel.load(RunSpec.of(ModelOptions(model=model, think="off")), Console(quiet=True)), 16)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--policy", default="heavy-hitter")
    parser.add_argument("--budget", default="10,20", help="percent of the full cache's bytes, with commas")
    parser.add_argument("--exact", default="10,25,50", help="percent of the slots that are exact, with commas")
    parser.add_argument("--suite", default="recall,kl", help="kl is measured one token at a time")
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--texts", type=int, default=8, help="of kl")
    parser.add_argument("--length", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    policy, subject = load_policy(options.policy), subject_of(options.model)
    budgets = [Budget.parse(f"{percent}%") for percent in options.budget.split(",")]
    shares = [Fraction(percent) / 100 for percent in options.exact.split(",")]
    found = []
    print(f"{'suite':7} {'budget':>10}  {'slots':10} {'exact':>5} {'S':>6} {'T':>4} {'bytes':>8}")
    for name in options.suite.split(","):
        suite = Suite(name, options.texts if name == "kl" else options.conversations, options.length, options.seed)
        limit = {"chunk_limit": 1} if suite.is_forced else {}
        variants = [Variant(policy, budget, **limit) for budget in budgets]
        for line in compare(subject, suite, variants, shares):
            found.append(line)
            show(line)
    if options.out is not None:
        told = {
            "command": ["python", *sys.argv],
            "model": subject.identity,
            "policy": repr(policy),
            "versions": installed_versions(),
            "results": [asdict(line) for line in found],
        }
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
