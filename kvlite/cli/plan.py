"""`kvlite plan`: what a model takes and what a budget buys, from config.json and safetensors headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import without
from kvlite.errors import DoesNotFit, UsageError
from kvlite.flags import option
from kvlite.options import ModelOptions

_WHEN_LOADED = ("think", "pin_system", "adapter", "trust_remote_code", "allow_pickle", "fuse", "capture", "speculate")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The question."""

    context: int | None = option(None, metavar="N", min=1, max=2**31 - 1, help="Tokens each row should keep.")
    batch_size: int | None = option(
        None, metavar="N", min=1, max=2**16, help="Plan a batch of at most N rows at a time."
    )
    vram: str | None = option(None, metavar="SIZE", help="Pretend a GPU with this much free memory.")


def plan(given: PlanOptions, options: Annotated[ModelOptions, without(*_WHEN_LOADED)], call: Invocation) -> None:
    """Say what fits, weights, KV cache and the rest in bytes, before anything is loaded; exit code 4 if it does not."""
    from kvlite.cli.planning import as_json, plan_report, show

    if given.batch_size is None:
        if call.sources["kv_per_seq"] == "flag":
            raise UsageError(f"--kv-per-seq {options.kv_per_seq} is one row of a batch; give --batch-size N too")
        options = replace(options, kv_per_seq=None)
    if given.context is not None and options.kv_per_seq is not None:
        raise UsageError("--context and --kv-per-seq both say what one row keeps; leave out one of them")
    report = plan_report(given, call.with_model(options), is_budget_given=call.is_given("kv_budget"))
    if call.console.as_json:
        call.console.json(as_json(report), indent=2)
    else:
        show(report, call.console)
    if report.quote.shortage is not None:
        raise DoesNotFit(f"{report.facts.ref} does not fit: {report.quote.shortage}")
