"""`kvlite eval`: what a KV budget costs on a model, and which policy to use."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from kvlite.cli.invocation import Invocation, model_argument
from kvlite.cli.signature import only
from kvlite.errors import UsageError
from kvlite.flags import option
from kvlite.options import SAMPLING, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from kvlite.evaluation.suites import Suite
    from kvlite.evaluation.variant import Variant
    from kvlite.memory.budget import Budget

_LENGTH = 900  # tokens of a conversation, where nobody names a number and the window holds as many
_WINDOW_SHARE = 0.9  # the rest is for answers longer than the right ones

_OF_MODEL = ("prefill_chunk", "quant", "dtype", "device", "revision", "trust_remote_code", "allow_pickle", "offline")


def _complete_suite(incomplete: str) -> list[str]:
    from kvlite.evaluation.suites import SUITES

    return [name for name in SUITES if name.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The model to measure, the suites, the policies and the budgets."""

    model: str | None = model_argument()
    suite: str | None = option(
        None,
        metavar="A,B",
        shown_default="recall,kl",
        complete=_complete_suite,
        help="What to measure: recall, passkey, needle, tracking, lookup, kl, ppl.",
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
        help="Keep results here as they come; what it holds is not measured again.",
    )
    html: Path | None = option(None, metavar="FILE", from_settings=False, help="Write a page with plots.")
    batch_size: int | None = option(None, metavar="N", min=1, help="Conversations that run at once.")

    def tokens(self, window: int | None) -> int:
        """Tokens of a conversation. Raises UsageError where the model's window does not hold as many."""
        if self.length is None:
            return _LENGTH if window is None else min(_LENGTH, int(window * _WINDOW_SHARE))
        if window is not None and self.length > window:
            raise UsageError(f"--length {self.length} is more than the model's window of {window} tokens; give fewer")
        return self.length

    def suites(self, length: int) -> list[Suite]:
        """The suites of conversations of `length` tokens. Raises UsageError on unknown names, and on a useless text."""
        from kvlite.evaluation.suites import Suite

        names = _listed(self.suite) or (("kl", "ppl") if self.text is not None else ("recall", "kl"))
        suites = [Suite(name, self.conversations, length, self.seed, self.split, self.answer_tokens) for name in names]
        if self.text is not None and not any(suite.is_forced for suite in suites):
            raise UsageError(f"--text {self.text} is for the suites kl and ppl; give --suite kl,ppl or leave it out")
        return suites

    def variants(self, chunk: int | None) -> list[Variant]:
        """Policies by slot formats by budgets, fed `chunk` prompt tokens at once or as many as usual.

        Raises UsageError on a word that is none of these.
        """
        from kvlite.cache.policy import load_policy
        from kvlite.cache.policy_text import split_policies
        from kvlite.evaluation.variant import Variant
        from kvlite.memory.format import slot_format
        from kvlite.memory.plan import MOST_CHUNK

        policies = [load_policy(name) for name in _listed(self.policy, split_policies)]
        formats = _listed(self.kv_dtype)
        for name in formats:
            slot_format(name, "float32")
        return [
            Variant(policy, budget, kv_dtype, chunk or MOST_CHUNK)
            for budget in self._budgets()
            for policy in policies
            for kv_dtype in formats
            if policy.evicts  # the full cache is the reference, whatever the budget
        ]

    def _budgets(self) -> list[Budget]:
        from kvlite.memory.budget import Budget, BudgetKind

        sizes = [Budget.parse(size) for size in _listed(self.kv_budget)]
        for size in sizes:
            if size.kind not in (BudgetKind.BYTES, BudgetKind.TOKENS):
                raise UsageError(f"--kv-budget {size} is no size; give bytes or tokens, or --share for percent")
        shares = _listed(self.share) or (() if sizes else ("10", "25"))
        return [*map(_share, shares), *sizes]

    def check(self) -> None:
        """Raise UsageError on mistakes that show before any model is looked for.

        Among them files that could not be written afterwards, or that would be written over what is read.
        """
        self.variants(None)
        self.suites(self.tokens(None))
        for flag, path, others in (
            ("--journal", self.journal, {"--text": self.text}),
            ("--html", self.html, {"--text": self.text, "--journal": self.journal}),
        ):
            if path is None:
                continue
            if obstacle := _obstacle(path):
                raise UsageError(f"{flag} {path}: {obstacle}; give another file")
            for other, file in others.items():
                if file is not None and file.resolve() == path.resolve():
                    raise UsageError(f"{flag} and {other} name the same file {path}; give another")


def eval_(
    given: EvalOptions,
    options: Annotated[ModelOptions, only(*_OF_MODEL, think="off")],
    output: Annotated[OutputOptions, only("report")],
    call: Invocation,
) -> None:
    """Measure what a KV budget costs on a model, policies side by side, and say which to use."""
    from kvlite.cli.evaluating import evaluate

    given.check()
    call.announce_built_in(given.model)
    options = replace(options, model=call.chosen_model(given.model))
    chunk = options.prefill_chunk if call.is_given("prefill_chunk") else None
    with call.start_recorder("eval", output.report) as recorder:
        evaluate(given, options, chunk, recorder, call.console)


def _listed(value: str | None, split: Callable[[str], list[str]] = lambda text: text.split(",")) -> tuple[str, ...]:
    """The items of a list with commas; nothing of what was not given. Raises UsageError on an empty item."""
    items = [] if value is None else [item.strip() for item in split(value)]
    if "" in items:
        raise UsageError(f"{value!r} has an empty item; give names with commas between")
    return tuple(dict.fromkeys(items))


def _share(text: str) -> Budget:
    from kvlite.memory.budget import Budget

    try:
        return Budget.parse(f"{text.removesuffix('%')}%")
    except UsageError as error:
        raise UsageError(f"--share {text} is no percentage; give a number above 0 and at most 100") from error


def _obstacle(path: Path) -> str | None:
    """The reason why a file cannot be written, None where it can."""
    if path.is_dir():
        return "a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return None if os.access(path if path.exists() else path.parent, os.W_OK) else "it may not be written"
