"""`kvlite eval`: what a KV budget costs on a model, and which policy to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import only
from kvlite.flags import option, read_file_name, read_page_name
from kvlite.options import SAMPLING, ModelOptions, OutputOptions

# fmt: off
_OF_MODEL = (
    "model", "prefill_chunk", "quant", "four_bit", "dtype", "device", "revision", "trust_remote_code", "allow_pickle",
    "offline",
)
# fmt: on


def _complete_suite(incomplete: str) -> list[str]:
    from kvlite.evaluation.suites import SUITES

    return [name for name in SUITES if name.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The suites, the policies and the budgets to measure."""

    suite: str | None = option(
        None,
        metavar="A,B",
        shown_default="recall,kl",
        complete=_complete_suite,
        help="What to measure: recall, needle, tracking, lookup, kl, ppl.",
    )
    policy: str = option(
        "heavy-hitter,h2o,window",
        metavar="A,B",
        complete="policy",
        help="Policies to compare, with settings or without: h2o,window:sinks=8; the full cache is always measured.",
    )
    share: str | None = option(
        None,
        metavar="P,Q",
        shown_default="10,25",
        help="Budgets in percent of the full cache's bytes for the longest conversation of a suite.",
    )
    kv_budget: str | None = option(
        None,
        metavar="SIZE,SIZE",
        from_settings=False,
        help="Budgets of one conversation in bytes or tokens: 1MB,64tok.",
    )
    kv_dtype: str = option(
        "auto", metavar="A,B", help="What a slot stores, compared too; auto is the model's own dtype here."
    )
    text: Path | None = option(
        None,
        metavar="FILE",
        from_settings=False,
        help="Your own text for kl and ppl, in place of dialogues; - is stdin.",
    )
    conversations: int = option(32, metavar="N", min=1, help="Conversations, or texts, of each suite.")
    length: int | None = option(
        None,
        metavar="TOKENS",
        min=16,
        shown_default="900, or what fits the model's window",
        help="How long a conversation or text is, as written.",
    )
    answer_tokens: int = option(32, metavar="N", min=1, help="End the model's answers after N.")
    seed: int = option(0, metavar="N", heading=SAMPLING, shown_default=False, help="Same seed, same answer.")
    split: Literal["train", "held-out"] = option(
        "held-out", help="Words the built-in model was trained on, or not; tune on one, report the other."
    )
    journal: Path | None = option(
        None,
        metavar="FILE",
        from_settings=False,
        parse=read_file_name,
        help="Keep results here as they come; what it holds is not measured again.",
    )
    html: Path | None = option(
        None, metavar="FILE", from_settings=False, parse=read_page_name, help="Write a page with plots."
    )
    batch_size: int | None = option(None, metavar="N", min=1, help="Conversations that run at once.")


def eval_(
    given: EvalOptions,
    options: Annotated[ModelOptions, only(*_OF_MODEL, think="off")],
    output: Annotated[OutputOptions, only("report")],
    call: Invocation,
) -> None:
    """Measure what a KV budget costs on a model, policies side by side, and say which to use."""
    from kvlite.cli.evaluating import check, evaluate

    check(given)
    call.announce_unnamed(options.model)
    chunk = options.prefill_chunk if call.is_given("prefill_chunk") else None
    with call.start_recorder("eval", output.report) as recorder:
        evaluate(given, call.with_model(options), chunk, recorder, call.console)
