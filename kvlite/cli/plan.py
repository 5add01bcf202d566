"""`kvlite plan`: what a model takes and what a budget buys, from config.json and safetensors headers alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvlite.cli.invocation import chosen_model, console
from kvlite.cli.options import (
    Device,
    Dtype,
    FourBit,
    KvBudget,
    KvDtype,
    KvPolicy,
    ModelArg,
    Offline,
    PrefillChunk,
    Quant,
    Revision,
)
from kvlite.errors import DoesNotFit, UsageError

if TYPE_CHECKING:
    from kvlite.catalog.files import ModelFacts
    from kvlite.cli.plan_view import PlanDevice
    from kvlite.memory.budget import Budget
    from kvlite.memory.prediction import WeightFacts
    from kvlite.memory.scenario import Answer, Scenario

Solve = Literal["budget", "context", "batch"]


def plan(
    model: ModelArg = None,
    kv_budget: KvBudget = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", min=1, max=2**31 - 1, help="Tokens each row should keep.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, max=2**16, help="Rows that share the budget.")
    ] = 1,
    solve: Annotated[
        Solve | None,
        typer.Option("--solve", help="Find the smallest budget, the longest context or the largest batch that fits."),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="A table of budgets and what each of them keeps.")] = False,
    vram: Annotated[
        str | None, typer.Option("--vram", metavar="SIZE", help="Pretend a GPU with this much free memory.")
    ] = None,
    kv_policy: KvPolicy = None,
    kv_dtype: KvDtype = None,
    prefill_chunk: PrefillChunk = None,
    quant: Quant = None,
    four_bit: FourBit = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    offline: Offline = False,
) -> None:
    """Say what fits, weights, KV cache and the rest in bytes, before anything is loaded; exit code 4 if it does not."""
    from kvlite.catalog.files import model_facts
    from kvlite.catalog.names import resolve_model
    from kvlite.cli.plan_view import Outcome, as_json, show
    from kvlite.memory.scenario import sweep as budgets

    if four_bit and quant not in (None, "4bit"):
        raise UsageError(f"--4bit contradicts --quant {quant}; give one of them")
    budget = _budget(kv_budget, context, solve)
    place = _device(device, vram)
    ref = resolve_model(chosen_model(model), revision=revision)
    facts = model_facts(ref, offline=offline)
    scenario = _scenario(facts, place, dtype, kv_policy, kv_dtype, "4bit" if four_bit else quant or "none")
    scenario = replace(scenario, rows=batch_size, chunk_limit=prefill_chunk or scenario.chunk_limit)
    if batch_size > 1 and scenario.shape.has_state:
        raise UsageError(f"{scenario.shape.family} models carry state and run one row at a time, not {batch_size}")
    answer = _answer(scenario, budget, context, solve)
    outcome = Outcome(str(ref), facts, place, answer, context, solve, tuple(budgets(scenario)) if sweep else ())
    out = console()
    if out.as_json:
        out.json(as_json(outcome), indent=2)
    else:
        show(outcome, out)
    if answer.shortage is not None:
        raise DoesNotFit(f"{ref} does not fit: {answer.shortage}")


def _budget(kv_budget: str | None, context: int | None, solve: Solve | None) -> Budget:
    """What is asked for: the budget given, else room for the context, else what fits."""
    from kvlite.memory.budget import Budget

    if solve == "budget" and kv_budget is not None:
        raise UsageError(f"--solve budget looks for what --kv-budget {kv_budget} gives; leave out one of them")
    if solve == "context" and context is not None:
        raise UsageError(f"--solve context looks for what --context {context} gives; leave out one of them")
    if solve == "batch" and context is None:
        raise UsageError("--solve batch needs the tokens each row should keep; give --context N")
    if kv_budget is None and context is not None:
        return Budget.parse(f"{context}tok")
    return Budget.parse("full" if solve == "budget" else kv_budget or "auto")


def _answer(scenario: Scenario, budget: Budget, context: int | None, solve: Solve | None) -> Answer:
    from kvlite.memory.scenario import ask, most_rows

    if solve != "batch":
        return ask(scenario, budget)
    assert context is not None, "checked with the other flags"
    rows = most_rows(scenario, budget, context)
    if rows:
        return ask(replace(scenario, rows=rows), budget)
    one = ask(replace(scenario, rows=1), budget)
    return replace(one, shortage=one.shortage or f"not one row of {context:,} tokens fits into {budget}")


def _device(device: str | None, vram: str | None) -> PlanDevice:
    """Where it would run: a pretended GPU, the first real one, or this machine's memory."""
    from kvlite.cli.plan_view import PlanDevice
    from kvlite.memory.format import parse_size
    from kvlite.memory.host import available_bytes
    from kvlite.memory.measure import device_reading

    if vram is not None:
        size = parse_size(vram)
        if not size:
            raise UsageError(f"--vram {vram} is not a size; give for example 8GB or 8GiB")
        return PlanDevice("cuda", "a GPU", size)
    kind = (device or "auto").partition(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise UsageError(f"unknown device '{device}'; give auto, cpu, cuda or mps")
    if kind in ("auto", "cuda"):
        gpu = device_reading()
        if gpu is not None:
            return PlanDevice("cuda", gpu.name, gpu.free_bytes)
        if kind == "cuda":
            raise UsageError(f"--device {device}: no GPU answers here; give --vram SIZE to pretend one")
    return PlanDevice("cpu", "this machine", available_bytes())


def _scenario(
    facts: ModelFacts, place: PlanDevice, dtype: str | None, kv_policy: str | None, kv_dtype: str | None, quant: str
) -> Scenario:
    from kvlite.cache.policy import DEFAULT_POLICY, load_policy
    from kvlite.memory.format import FORMAT_SPELLINGS, FORMATS, slot_format
    from kvlite.memory.scenario import Scenario
    from kvlite.memory.shape import ModelShape

    computed = FORMAT_SPELLINGS.get(dtype or "auto", dtype or "auto")
    if computed != "auto" and computed not in FORMATS:
        raise UsageError(f"unknown dtype '{dtype}'; give auto, {', '.join(FORMATS)}")
    policy = load_policy(kv_policy or DEFAULT_POLICY)
    shape = ModelShape.from_config(
        facts.config, dtype=None if computed == "auto" else computed, stored_dtype=facts.stored_dtype
    )
    return Scenario(
        shape,
        slot_format(kv_dtype or "auto", shape.dtype),
        policy.state_bytes_per_slot,
        policy.min_slots(),
        policy.evicts,
        _weights(facts),
        quant,
        place.kind,
        place.free_bytes,
    )


def _weights(facts: ModelFacts) -> WeightFacts | None:
    from kvlite.memory.prediction import WeightFacts

    if facts.weight_bytes is None:
        return None
    text = facts.config.get("text_config") or facts.config
    return WeightFacts(
        num_bytes=facts.weight_bytes,
        parameters=facts.parameters,
        is_tied=text.get("tie_word_embeddings", True) is not False,  # transformers leaves it out where it is true
        is_quantised="quantization_config" in facts.config,
    )
