"""`kvlite plan`: what a model takes and what a budget buys, from config.json and safetensors headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from kvlite.cli.invocation import Invocation
from kvlite.cli.options import model_argument
from kvlite.cli.signature import without
from kvlite.errors import DoesNotFit, UsageError
from kvlite.flags import option
from kvlite.options import ModelOptions

if TYPE_CHECKING:
    from kvlite.llm.spec import RunSpec
    from kvlite.memory.budget import Budget
    from kvlite.memory.fit import Fit, Quote

_WHEN_LOADED = ("think", "pin_system", "trust_remote_code", "allow_pickle", "fuse", "kernels", "capture")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request. Raises UsageError where one thing is given twice, or `--solve` looks for what is given."""

    kv_budget: str | None
    kv_per_seq: str | None
    context: int | None
    batch_size: int | None
    solve: str | None

    def __post_init__(self) -> None:
        if self.solve == "budget" and self.kv_budget is not None:
            raise UsageError(f"--solve budget looks for what --kv-budget {self.kv_budget} gives; leave out one of them")
        for flag, value in (("--context", self.context), ("--kv-per-seq", self.kv_per_seq)):
            if self.solve == "context" and value is not None:
                raise UsageError(f"--solve context looks for what {flag} {value} gives; leave out one of them")
        if self.solve == "batch" and self.context is None:
            raise UsageError("--solve batch needs the tokens each row should keep; give --context N")
        if self.context is not None and self.kv_per_seq is not None:
            raise UsageError("--context and --kv-per-seq both say what one row keeps; leave out one of them")

    def budget(self, spec: RunSpec) -> Budget:
        """The budget given; else room for the context, for every row that fits, or what fits."""
        from kvlite.memory.budget import Budget, BudgetKind

        if self.kv_budget is None and self.context is not None:
            is_one_row = self.batch_size is None and self.solve != "batch"
            return Budget(BudgetKind.TOKENS, self.context) if is_one_row else Budget(BudgetKind.AUTO)
        return Budget(BudgetKind.FULL) if self.solve == "budget" else spec.budget

    def row_budget(self, spec: RunSpec) -> Budget | None:
        """The budget of each row of a batch, where that is given."""
        from kvlite.memory.budget import Budget, BudgetKind

        return spec.row_budget if self.context is None else Budget(BudgetKind.TOKENS, self.context)


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


def plan(
    given: PlanOptions,
    options: Annotated[ModelOptions, without(*_WHEN_LOADED)],
    call: Invocation,
) -> None:
    """Say what fits, weights, KV cache and the rest in bytes, before anything is loaded; exit code 4 if it does not."""
    from kvlite.catalog.files import model_facts
    from kvlite.cli.plan_view import PlanReport, as_json, show
    from kvlite.llm.plan_device import find_device
    from kvlite.llm.spec import RunSpec
    from kvlite.memory.fit import sweep

    wanted = Wanted(
        kv_budget=options.kv_budget if call.is_given("kv_budget") else None,
        kv_per_seq=options.kv_per_seq if given.batch_size else None,
        context=given.context,
        batch_size=given.batch_size,
        solve=given.solve,
    )
    if given.batch_size is None and call.sources["kv_per_seq"] == "flag":
        raise UsageError(f"--kv-per-seq {options.kv_per_seq} is one row of a batch; give --batch-size N too")
    place = find_device(options.device, given.vram)
    spec = RunSpec.of(replace(options, model=call.chosen_model(given.model)))
    spec = replace(spec, budget=wanted.budget(spec), row_budget=wanted.row_budget(spec))
    facts, ref = model_facts(spec.ref, offline=spec.offline), spec.ref
    fit = spec.fit(facts, spec.shape(facts), place.kind, place.free_bytes, given.batch_size)
    found = _quote(fit, spec.budget, wanted)
    budgets = tuple(sweep(fit)) if given.sweep else ()
    report = PlanReport(str(ref), facts, place, found, given.context, given.solve, budgets)
    if call.console.as_json:
        call.console.json(as_json(report), indent=2)
    else:
        show(report, call.console)
    if found.shortage is not None:
        raise DoesNotFit(f"{ref} does not fit: {found.shortage}")


def _quote(fit: Fit, budget: Budget, wanted: Wanted) -> Quote:
    from kvlite.memory.budget import Budget, BudgetKind
    from kvlite.memory.fit import most_rows, most_tokens, quote

    context = wanted.context
    if wanted.solve == "batch" and context is not None:
        row = Budget(BudgetKind.TOKENS, context)
        rows = most_rows(fit, budget, context)
        found = quote(fit.with_rows(max(1, rows), row), budget)
        missing = f"not one row of {context:,} tokens fits into {budget}"
        return found if rows else replace(found, shortage=found.shortage or missing)
    if wanted.solve == "context" and fit.batch is not None:
        tokens = most_tokens(fit, budget)
        found = quote(fit.with_rows(fit.most_rows, Budget(BudgetKind.TOKENS, max(1, tokens))), budget)
        missing = f"{fit.most_rows} rows do not fit into {budget}"
        return found if tokens else replace(found, shortage=found.shortage or missing)
    return quote(fit, budget)
