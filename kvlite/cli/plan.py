"""`kvlite plan`: what a model takes and what a budget buys, from config.json and safetensors headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import without
from kvlite.errors import DoesNotFit, UsageError
from kvlite.flags import option
from kvlite.options import ModelOptions

_WHEN_LOADED = ("think", "pin_system", "trust_remote_code", "allow_pickle", "fuse", "kernels", "capture")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The question."""

    context: int | None = option(None, metavar="N", min=1, max=2**31 - 1, help="Tokens each row should keep.")
    batch_size: int | None = option(
        None, metavar="N", min=1, max=2**16, help="Plan a batch of at most N rows at a time."
    )
    solve: Literal["budget", "context", "batch"] | None = option(
        None, help="Find the smallest budget, the longest context or the largest batch that fits."
    )
    vram: str | None = option(None, metavar="SIZE", help="Pretend a GPU with this much free memory.")


def plan(given: PlanOptions, options: Annotated[ModelOptions, without(*_WHEN_LOADED)], call: Invocation) -> None:
    """Say what fits, weights, KV cache and the rest in bytes, before anything is loaded; exit code 4 if it does not."""
    from kvlite.cli.planning import as_json, plan_report, show

    if given.batch_size is None:
        if call.sources["kv_per_seq"] == "flag":
            raise UsageError(f"--kv-per-seq {options.kv_per_seq} is one row of a batch; give --batch-size N too")
        options = replace(options, kv_per_seq=None)
    kv_budget = options.kv_budget if call.is_given("kv_budget") else None
    _refuse_contradictions(given, kv_budget, options.kv_per_seq)
    report = plan_report(given, call.with_model(options), is_budget_given=kv_budget is not None)
    if call.console.as_json:
        call.console.json(as_json(report), indent=2)
    else:
        show(report, call.console)
    if report.quote.shortage is not None:
        raise DoesNotFit(f"{report.model} does not fit: {report.quote.shortage}")


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
