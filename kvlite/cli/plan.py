"""`kvlite plan`: what a model takes and what a budget buys, from config.json and safetensors headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from kvlite.cli.invocation import Invocation, model_argument
from kvlite.cli.signature import without
from kvlite.errors import DoesNotFit, UsageError
from kvlite.flags import option
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from kvlite.llm.spec import RunSpec
    from kvlite.memory.budget import Budget
    from kvlite.memory.fit import Fit, Quote

_WHEN_LOADED = ("think", "pin_system", "trust_remote_code", "allow_pickle", "fuse", "kernels", "capture")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The model to plan for, and the question."""

    model: str | None = model_argument()
    context: int | None = option(None, metavar="N", min=1, max=2**31 - 1, help="Tokens each row should keep.")
    batch_size: int | None = option(
        None, metavar="N", min=1, max=2**16, help="Plan a batch of at most N rows at a time."
    )
    solve: Literal["budget", "context", "batch"] | None = option(
        None, help="Find the smallest budget, the longest context or the largest batch that fits."
    )
    sweep: bool = option(False, help="A table of budgets and what each of them keeps.")
    vram: str | None = option(None, metavar="SIZE", help="Pretend a GPU with this much free memory.")


def plan(given: PlanOptions, options: Annotated[ModelOptions, without(*_WHEN_LOADED)], call: Invocation) -> None:
    """Say what fits, weights, KV cache and the rest in bytes, before anything is loaded; exit code 4 if it does not."""
    from kvlite.catalog.files import model_facts
    from kvlite.cli.plan_view import PlanReport, as_json, show
    from kvlite.llm.spec import RunSpec, find_device
    from kvlite.memory.fit import sweep

    if given.batch_size is None:
        if call.sources["kv_per_seq"] == "flag":
            raise UsageError(f"--kv-per-seq {options.kv_per_seq} is one row of a batch; give --batch-size N too")
        options = replace(options, kv_per_seq=None)
    kv_budget = options.kv_budget if call.is_given("kv_budget") else None
    _refuse_contradictions(given, kv_budget, options.kv_per_seq)
    place = find_device(options.device, given.vram)
    spec = RunSpec.of(replace(options, model=call.chosen_model(given.model)))
    spec = _with_budgets(spec, given, is_budget_given=kv_budget is not None)
    facts = model_facts(spec.ref, offline=spec.offline)
    fit = spec.fit(facts, spec.shape(facts), place.kind, place.free_bytes, given.batch_size)
    found = _quote(fit, spec.budget, given)
    report = PlanReport(str(spec.ref), facts, place, found, given, tuple(sweep(fit)) if given.sweep else ())
    if call.console.as_json:
        call.console.json(as_json(report), indent=2)
    else:
        show(report, call.console)
    if found.shortage is not None:
        raise DoesNotFit(f"{spec.ref} does not fit: {found.shortage}")


def _refuse_contradictions(given: PlanOptions, kv_budget: str | None, kv_per_seq: str | None) -> None:
    """Raise UsageError where one thing is given twice, or `--solve` looks for what is given."""
    looked_for: dict[str, dict[str, object]] = {
        "budget": {"--kv-budget": kv_budget},
        "context": {"--context": given.context, "--kv-per-seq": kv_per_seq},
    }
    for flag, value in looked_for.get(given.solve or "", {}).items():
        if value is not None:
            raise UsageError(f"--solve {given.solve} looks for what {flag} {value} gives; leave out one of them")
    if given.solve == "batch" and given.context is None:
        raise UsageError("--solve batch needs the tokens each row should keep; give --context N")
    if given.context is not None and kv_per_seq is not None:
        raise UsageError("--context and --kv-per-seq both say what one row keeps; leave out one of them")


def _with_budgets(spec: RunSpec, given: PlanOptions, *, is_budget_given: bool) -> RunSpec:
    """Without a budget of the user's, one with room for the context; a row of a batch keeps the context."""
    from kvlite.memory.budget import Budget, BudgetKind

    budget, context = spec.budget, given.context
    if not is_budget_given and context is not None:
        is_one_row = given.batch_size is None and given.solve != "batch"
        budget = Budget(BudgetKind.TOKENS, context) if is_one_row else Budget(BudgetKind.AUTO)
    elif given.solve == "budget":
        budget = Budget(BudgetKind.FULL)
    row_budget = spec.row_budget if context is None else Budget(BudgetKind.TOKENS, context)
    return replace(spec, budget=budget, row_budget=row_budget)


def _quote(fit: Fit, budget: Budget, given: PlanOptions) -> Quote:
    """What `budget` buys, with the most rows or the longest rows that fit where these are looked for."""
    from kvlite.memory.budget import Budget, BudgetKind
    from kvlite.memory.fit import most_rows, most_tokens, quote

    if given.solve == "batch" and given.context is not None:
        found = most_rows(fit, budget, given.context)
        fit = fit.with_rows(max(1, found), Budget(BudgetKind.TOKENS, given.context))
        missing = f"not one row of {given.context:,} tokens fits into {budget}"
    elif given.solve == "context" and fit.batch is not None:
        found = most_tokens(fit, budget)
        fit = fit.with_rows(fit.most_rows, Budget(BudgetKind.TOKENS, max(1, found)))
        missing = f"{fit.most_rows} rows do not fit into {budget}"
    else:
        return quote(fit, budget)
    bought = quote(fit, budget)
    return bought if found else replace(bought, shortage=bought.shortage or missing)
