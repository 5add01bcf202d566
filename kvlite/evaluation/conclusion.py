"""One or two sentences on a suite: the cost of a budget and the policy to use, or why neither can be said."""

from __future__ import annotations

from collections.abc import Sequence

from kvlite.evaluation.summary import Line, Pair, Summary, bootstrap, mean

LEAST_RIGHT = 0.8
"""Below this share of right answers under the full cache a suite says more about the model than about the policy."""

LEAST_ASKED = 5
"""Fewer questions than these say nothing of a model that gets them wrong."""


def conclusion(summary: Summary) -> str:
    """The conclusion from the numbers, or the reason why there is none."""
    suite, reference = summary.suite, summary.reference
    if not reference.count:
        return "Nothing was asked; give longer conversations, or more of them."
    if not suite.is_forced and reference.main.value < LEAST_RIGHT:
        return _too_weak(summary)
    if not summary.by_budget:
        return f"The full cache: {_cost(summary, reference)}."
    return " ".join(_advice(summary, budget, list(lines.values())) for budget, lines in summary.by_budget.items())


def _too_weak(summary: Summary) -> str:
    """The full cache's own share, and whether it says something of the model."""
    suite, reference = summary.suite, summary.reference
    share = f"{reference.main.value:.0%} of these"
    if reference.count < LEAST_ASKED or reference.main.high >= LEAST_RIGHT:
        asked = "1 question is" if reference.count == 1 else f"{reference.count} questions are"
        return (
            f"The full cache itself answers {share}, and {asked} too few to say whether the model is up to the suite "
            f"{suite.name}; give more --conversations."
        )
    return (
        f"The full cache itself answers only {share}: this model is too small for the suite {suite.name}, so nothing "
        "follows about budgets and policies."
    )


def _advice(summary: Summary, budget: str, lines: Sequence[Line]) -> str:
    """The best of a budget's lines, and the others that the measurement cannot tell from it."""
    pick = min if summary.suite.is_forced else max
    best = pick(lines, key=lambda line: line.main.value)
    cost, others = _cost(summary, best), [line for line in lines if line is not best]
    if not others:
        return f"At {budget} {best.placed.variant.name}: {cost}."
    alike = [line.placed.variant.name for line in others if not _differs(best, line, summary.suite.seed)]
    doubt = f"{' and '.join(alike)} cannot be told from it" if alike else "its lead is more than chance"
    return f"At {budget} use {best.placed.variant.name}: {cost} ({doubt})."


def _differs(one: Line, other: Line, seed: int) -> bool:
    """True if the interval of the difference, in pairs over conversations, leaves out zero."""

    def difference(drawn: Sequence[tuple[Pair, Pair]]) -> float:
        return mean([first for first, _ in drawn]) - mean([second for _, second in drawn])

    found = bootstrap(list(zip(one.samples, other.samples, strict=True)), difference, seed)
    return found.low > 0 or found.high < 0


def _cost(summary: Summary, line: Line) -> str:
    """The result of a line, in words."""
    if not summary.suite.is_forced:
        kept = line.figures["of_full"]
        return f"{kept.value:.0%} of what the full cache answers [{kept.low:.0%} to {kept.high:.0%}]"
    if summary.suite.name == "kl":
        agreed = line.figures["agreement"].value
        return f"{line.main.value:.3f} nats from the full cache, the same first choice for {agreed:.1%} of the tokens"
    return f"perplexity {line.main.value:.2f} where the full cache has {summary.reference.main.value:.2f}"
