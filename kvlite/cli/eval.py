"""`kvlite eval`: what a KV budget costs on a model, and which policy to use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import only
from kvlite.flags import option, read_file_name, read_page_name
from kvlite.options import SAMPLING, ModelOptions, OutputOptions

# fmt: off
_OF_MODEL = (
    "model", "prefill_chunk", "quant", "four_bit", "dtype", "device", "revision", "trust_remote_code", "allow_pickle",
    "offline", "profile",
)
# fmt: on


def _complete_suite(incomplete: str) -> list[str]:
    from kvlite.evaluation.suites import SUITES

    return [name for name in SUITES if name.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The suites, the policies and the budgets to measure."""

    quick: bool = option(False, help="Two suites of four items: about five minutes of a CPU for a model of 135M.")
    suite: str | None = option(
        None,
        metavar="A,B",
        shown_default="needles,dialogue,prompt,kl; with --quick needles,dialogue",
        complete=_complete_suite,
        help="What to measure: needles, dialogue, prompt, lines, multikey, tracking, cloze, kl, ppl.",
    )
    policy: str = option(
        "replay,heavy-hitter,window",
        metavar="A,B",
        complete="policy",
        help="Policies to compare, with settings or without: h2o,window:sinks=8; the full cache is always measured.",
    )
    share: str | None = option(
        None,
        metavar="P,Q",
        shown_default="10,20",
        help="Budgets in percent of the full cache's bytes for the longest item of a suite.",
    )
    kv_budget: str | None = option(
        None,
        metavar="SIZE,SIZE",
        from_settings=False,
        help="Budgets of one conversation in bytes or tokens: 1MB,64tok.",
    )
    kv_dtype: str | None = option(
        None,
        metavar="A,B",
        shown_default="auto; with --quick auto,k6v4,int4",
        help="What a slot stores, compared too; auto is what kvlite takes by itself.",
    )
    text: Path | None = option(
        None,
        metavar="FILE",
        from_settings=False,
        help="Your own text to read and ask about, in place of a novel's; - is stdin. Not in dialogue and lines.",
    )
    items: int | None = option(
        None, metavar="N", min=1, shown_default="10; with --quick 4", help="Passages or dialogues of each suite."
    )
    length: int | None = option(
        None,
        metavar="TOKENS",
        min=16,
        shown_default="900, or what fits the model's window",
        help="The tokens of an item with a question.",
    )
    free: bool = option(False, help="Let the model also answer in its own words; takes longer.")
    answer_tokens: int = option(32, metavar="N", min=1, help="With --free: end its answers after N.")
    seed: int = option(0, metavar="N", heading=SAMPLING, shown_default=False, help="Same seed, same answer.")
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
    batch_size: int | None = option(None, metavar="N", min=1, help="Items that run at once.")

    def filled(self) -> EvalOptions:
        """The options with those that nobody gave as `quick` says."""
        usual: dict[str, Any] = {"suite": "needles,dialogue,prompt,kl", "kv_dtype": "auto", "items": 10}
        quick: dict[str, Any] = {"suite": "needles,dialogue", "kv_dtype": "auto,k6v4,int4", "items": 4}
        found = {name: value for name, value in (quick if self.quick else usual).items() if getattr(self, name) is None}
        if self.share is None and self.kv_budget is None:
            found["share"] = "10,20"
        return replace(self, **found)


def eval_(
    given: EvalOptions,
    options: Annotated[ModelOptions, only(*_OF_MODEL, think="off")],
    output: Annotated[OutputOptions, only("report")],
    call: Invocation,
) -> None:
    """Measure what a KV budget costs on a model, policies side by side, and say which to use."""
    from kvlite.cli.evaluating import check, evaluate

    given = given.filled()
    check(given)
    call.announce_unnamed(options.model)
    chunk = options.prefill_chunk if call.is_given("prefill_chunk") else None
    with call.start_recorder("eval", output.report) as recorder:
        evaluate(given, call.with_model(options), chunk, recorder, call.console)
