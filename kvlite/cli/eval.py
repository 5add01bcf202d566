"""`kvlite eval`: what a KV budget costs on a model, and which policy to use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvlite.cli import options as opt
from kvlite.errors import UsageError


def _complete_suite(incomplete: str) -> list[str]:
    from kvlite.evaluation.suites import SUITES

    return [name for name in SUITES if name.startswith(incomplete)]


def _complete_policy(incomplete: str) -> list[str]:
    from kvlite.cache.policy import policy_names

    *before, last = incomplete.split(",")
    return [",".join([*before, name]) for name in policy_names() if name.startswith(last)]


def eval_(
    model: opt.ModelArg = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="A,B", show_default="recall,kl", autocompletion=_complete_suite,
                     help="What to measure: recall, passkey, needle, tracking, lookup, kl, ppl."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="A,B", show_default="heavy-hitter,h2o,window",
                     autocompletion=_complete_policy, help="Policies to compare; the full cache is always measured."),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option("--share", metavar="P,Q", show_default="10,25",
                     help="Budgets in percent of the full cache's bytes for the longest conversation of a suite."),
    ] = None,
    kv_budget: Annotated[
        str | None,
        typer.Option("--kv-budget", metavar="SIZE,SIZE", allow_from_autoenv=False,
                     help="Budgets of one conversation in bytes or tokens: 1MB,64tok."),
    ] = None,
    kv_dtype: Annotated[
        str | None,
        typer.Option("--kv-dtype", metavar="A,B", show_default="auto",
                     help="What a slot stores, compared too; auto is the model's own dtype here."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", allow_from_autoenv=False,
                     help="Your own text for kl and ppl, in place of dialogues; - is stdin."),
    ] = None,
    conversations: Annotated[
        int, typer.Option("--conversations", metavar="N", min=1, help="Conversations, or texts, of each suite.")
    ] = 32,
    length: Annotated[
        int | None,
        typer.Option("--length", metavar="TOKENS", min=16, show_default="900, or what fits the model's window",
                     help="How long a conversation or text is, as written."),
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", metavar="N", min=1, help="End the model's answers after N.")
    ] = 32,
    seed: opt.Seed = None,
    split: Annotated[
        Literal["train", "held-out"],
        typer.Option("--split", help="Words the built-in model was trained on, or not; tune on one, report the other."),
    ] = "held-out",
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", allow_from_autoenv=False,
                     help="Keep results here as they come; what it holds is not measured again."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", allow_from_autoenv=False, help="Write a page with plots."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="Conversations that run at once.")
    ] = None,
    prefill_chunk: opt.PrefillChunk = None,
    think: opt.Think = None,
    quant: opt.Quant = None,
    four_bit: opt.FourBit = False,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
    trust_remote_code: opt.TrustRemoteCode = False,
    allow_pickle: opt.AllowPickle = False,
    offline: opt.Offline = False,
) -> None:  # fmt: skip
    """Measure what a KV budget costs on a model, policies side by side, and say which to use."""
    from kvlite.cli.evaluating import Asked, evaluate

    asked = Asked(
        suites=_listed(suite) or (("kl", "ppl") if text is not None else ("recall", "kl")),
        policies=_listed(policy) or ("heavy-hitter", "h2o", "window"),
        shares=_listed(share) or (() if kv_budget else ("10", "25")),
        budgets=_listed(kv_budget),
        kv_dtypes=_listed(kv_dtype) or ("auto",),
        text=text,
        conversations=conversations,
        length=length,
        answer_tokens=answer_tokens,
        seed=seed or 0,
        split=split,
        prefill_chunk=prefill_chunk,
        batch_size=batch_size,
        journal=journal,
        html=html,
    )
    options = opt.model_options(
        model=model,
        think=think or "off",
        quant=quant,
        four_bit=four_bit,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        offline=offline,
    )
    asked.check()
    opt.announce_built_in(model)
    evaluate(asked, options, opt.console())


def _listed(value: str | None) -> tuple[str, ...]:
    """The items of a list with commas; nothing of what was not given. Raises UsageError on an empty item."""
    items = [] if value is None else [item.strip() for item in value.split(",")]
    if "" in items:
        raise UsageError(f"{value!r} has an empty item; give names with commas between")
    return tuple(dict.fromkeys(items))
