"""Results as an evaluation would have them, without a model: who answered which question, and what text cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvlite.cache.policy import load_policy
from kvlite.evaluation.journal import Answered, QuestionResult, Result, Scored, Span
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.summary import Measured, Summary, summarise
from kvlite.evaluation.variant import REFERENCE, Placed, Variant
from kvlite.memory.budget import Budget
from tests.cache.driving import attention_layer, model_shape

SHAPE = model_shape(attention_layer(), attention_layer())
TOKENS = 400


def placed(policy: str, budget: str | None = "50%", chunk: int = 512) -> Placed:
    """A variant on a small model; without a budget the reference."""
    if budget is None:
        return REFERENCE.place(SHAPE, TOKENS, TOKENS)
    return Variant(load_policy(policy), Budget.parse(budget), chunk_limit=chunk).place(SHAPE, TOKENS, TOKENS)


def answered(
    rights: Sequence[Sequence[bool]], kinds: Sequence[str] = ("name", "list"), unreached: int = 0
) -> list[Result]:
    """One conversation per sequence, its questions in turns 1, 3, 5 and so on, about turn 0, of the kinds in turn."""
    return [
        Answered(
            number,
            TOKENS,
            unreached,
            tuple(
                QuestionResult(2 * at + 1, right, 2 * at + 1, 20 * (at + 1), kinds[at % len(kinds)], 1, "")
                for at, right in enumerate(questions)
            ),
        )
        for number, questions in enumerate(rights)
    ]


def scored(kls: Sequence[float], tokens: int = 50) -> list[Result]:
    """One text per number, the mean divergence of its tokens."""
    return [
        Scored(number, TOKENS, (Span(0, 64, tokens, tokens * (1 + kl), tokens * kl, tokens),))
        for number, kl in enumerate(kls)
    ]


def summary(
    full: Sequence[Result],
    others: Mapping[tuple[str, str] | tuple[str, str, int], Sequence[Result]],
    suite: str = "recall",
) -> Summary:
    """A suite in numbers: what the full cache did, and the others by policy, budget and, if given, most T."""
    measured: list[Measured] = [(placed("full", None), full)]
    measured += [(placed(*name), results) for name, results in others.items()]
    return summarise(Suite(suite, len(full), TOKENS), SHAPE, measured)
