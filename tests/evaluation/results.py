"""Results as an evaluation would have them, without a model: who answered which question, and what text cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from kvlite.cache.policy import load_policy
from kvlite.evaluation.journal import Answered, QuestionResult, Result, Scored, Span
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.summary import Measured, Summary, summarise
from kvlite.evaluation.variant import REFERENCE, Placed, Variant
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from tests.cache.driving import attention_layer, model_shape

SHAPE = model_shape(attention_layer(), attention_layer())
MODEL: Any = SimpleNamespace(
    loaded=SimpleNamespace(shape=SHAPE),
    slot_format=lambda *_: slot_format("auto", "float32"),
    head_profile=lambda: None,
)
TOKENS = 400


def placed(policy: str, budget: str | None = "50%") -> Placed:
    """A variant on a small model; without a budget the reference."""
    if budget is None:
        return REFERENCE.place(MODEL, TOKENS)
    return Variant(load_policy(policy), Budget.parse(budget)).place(MODEL, TOKENS)


def answered(rights: Sequence[Sequence[bool]], guessed: Sequence[int] = ()) -> list[Result]:
    """One item per sequence, its questions 100, 200, 300 and so on tokens back."""
    return [
        Answered(
            number,
            TOKENS,
            tuple(
                QuestionResult("code", 100 * (at + 1), right, 0.0 if right else 2.0, at in guessed, "17", right, "17")
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
    full: Sequence[Result], others: Mapping[tuple[str, str], Sequence[Result]], suite: str = "needles"
) -> Summary:
    """A suite in numbers: the full cache's results, and the others' by policy and budget."""
    measured: list[Measured] = [(placed("full", None), full)]
    measured += [(placed(*name), results) for name, results in others.items()]
    return summarise(Suite(suite, len(full), TOKENS, free=True), SHAPE.full_cache_bytes(TOKENS), measured)
