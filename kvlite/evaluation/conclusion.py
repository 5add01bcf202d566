"""Sentences on what was measured: the cost of a budget in one suite, and what to use on this model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvlite.evaluation.summary import LEAST_DRAWN, Estimate, Line, Pair, Summary, bootstrap, mean, wilson
from kvlite.memory.format import counted, short_size

GOOD = 0.9
"""The share of the full cache's answers that a recommended budget keeps."""

SURE = 0.75
"""The least that the interval of a recommended budget may hold without a word of doubt."""

LEAST_ASKED = 5
"""Fewer questions than these say nothing of a model that gets them wrong."""


def conclusion(summary: Summary) -> str:
    """The conclusion of a suite from the numbers, or the reason why there is none."""
    suite, reference = summary.suite, summary.reference
    if not reference.count:
        return "Nothing was asked that cannot be guessed; give a longer --length, or more --items."
    if not summary.is_up_to_it:
        return _too_weak(summary)
    if not summary.by_budget:
        if suite.is_forced:
            name = summary.reference_name
            return f"{name[0].upper()}{name[1:]}: {_cost(summary, reference)}."
        return f"The full cache answers {_share(reference.figures['right'])} of these."
    return " ".join(_advice(summary, budget, list(lines.values())) for budget, lines in summary.by_budget.items())


def _too_weak(summary: Summary) -> str:
    """The full cache's own share, and whether it says something of the model."""
    suite, reference = summary.suite, summary.reference
    right = reference.figures["right"].value
    if reference.count < LEAST_ASKED:
        return (
            f"The full cache itself answers {right:.0%} of these, and {_questions(reference.count)} too few to say "
            "more; give more --items."
        )
    return (
        f"The full cache itself answers only {right:.0%} of these: the suite {suite.name} is left out, since the model "
        "is not up to it and nothing follows about budgets and policies."
    )


def _advice(summary: Summary, budget: str, lines: Sequence[Line]) -> str:
    """The best of a budget's lines, and the others that the measurement cannot tell from it."""
    pick = min if summary.suite.is_forced else max
    best = pick(lines, key=lambda line: line.main.value)
    cost, others = _cost(summary, best), [line for line in lines if line is not best]
    if not others:
        return f"At {budget} {best.placed.variant.name}: {cost}."
    alike = [
        line.placed.variant.name
        for line in others
        if line.placed.key() != best.placed.key() and not differs(best.samples, line.samples, summary.suite.seed)
    ]
    if len(best.samples) < LEAST_DRAWN:
        made_of = "text" if summary.suite.is_forced else "item"
        doubt = f"{counted(len(best.samples), made_of)} are too few to say what is chance"
    elif alike:
        doubt = f"{' and '.join(alike)} cannot be told from it"
    else:
        doubt = "its lead is more than chance"
    return f"At {budget} use {best.placed.variant.name}: {cost} ({doubt})."


def differs(one: Sequence[Pair], other: Sequence[Pair], seed: int) -> bool:
    """True if the interval of the difference, in pairs over items, leaves out zero."""
    found = difference(one, other, seed)
    return found.low > 0 or found.high < 0


def difference(one: Sequence[Pair], other: Sequence[Pair], seed: int) -> Estimate:
    """The difference of two means over the same items, with its interval from pairs."""

    def of(drawn: Sequence[tuple[Pair, Pair]]) -> float:
        return mean([first for first, _ in drawn]) - mean([second for _, second in drawn])

    return bootstrap(list(zip(one, other, strict=True)), of, seed)


def _cost(summary: Summary, line: Line) -> str:
    """The result of a line, in words."""
    if not summary.suite.is_forced:
        return f"{_share(line.figures['of_full'])} of what the full cache answers"
    if summary.suite.name == "kl":
        agreed = line.figures["agreement"].value
        return f"{line.main.value:.3f} nats from the full cache, the same first choice for {agreed:.1%} of the tokens"
    reference = summary.reference.main.value
    return f"perplexity {line.main.value:.2f}, and {reference:.2f} with {summary.reference_name}"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%} to {estimate.high:.0%}]"


@dataclass(frozen=True, slots=True)
class _Choice:
    """A variant at a budget: its line in each suite of questions, and what it keeps in all of them."""

    lines: tuple[Line, ...]

    @property
    def samples(self) -> list[Pair]:
        return [pair for line in self.lines for pair in line.samples]

    @property
    def kept(self) -> Estimate:
        return wilson(int(sum(right for right, _ in self.samples)), sum(asked for _, asked in self.samples))

    @property
    def flags(self) -> str:
        variant = self.lines[0].placed.variant
        return f"--kv-policy {variant.policy} --kv-dtype {variant.kv_dtype}"


def recommendation(summaries: Sequence[Summary]) -> str:
    """The options for this model: the smallest budget that keeps nearly all, and the best variant there.

    Of variants that the measurement cannot tell apart, the first that was named is taken.
    """
    asked = [summary for summary in summaries if not summary.suite.is_forced and summary.is_up_to_it]
    budgets = list(asked[0].by_budget) if asked else []
    if not budgets:
        return "No budget is recommended: no suite of questions was measured that the model is up to."
    best = {budget: _best(asked, budget) for budget in budgets}
    enough = [budget for budget in budgets if best[budget].kept.value >= GOOD]
    chosen = enough[0] if enough else budgets[-1]
    placed, longest = best[chosen].lines[0].placed, max(summary.tokens for summary in asked)
    told = "; ".join(f"{budget}: {_share(each.kept)}, {each.flags}" for budget, each in best.items())
    size = short_size(max(line.placed.plan.budget_bytes for line in best[chosen].lines), up=True)
    judged = "keeps" if enough else f"is the best of these, none of which keeps {GOOD:.0%}: it keeps"
    is_sure = not enough or best[chosen].kept.low >= SURE
    count = sum(questions for _, questions in best[chosen].samples)
    few = "" if is_sure else f" {_questions(count)} too few to be sure of it; give more --items."
    return (
        f"For conversations of {longest:,} tokens, --kv-budget {size} {best[chosen].flags} ({placed.budget_text}) "
        f"{judged} {_share(best[chosen].kept)} of what the full cache answers; longer ones need as much more. "
        f"The best of each budget, over {', '.join(summary.suite.name for summary in asked)}: {told}.{few}"
    )


def _questions(count: int) -> str:
    return "1 question is" if count == 1 else f"{count} questions are"


def _best(asked: Sequence[Summary], budget: str) -> _Choice:
    """The first named of the variants at a budget that cannot be told from the one that keeps most."""
    names = list(asked[0].by_budget[budget])
    choices = [_Choice(tuple(summary.by_budget[budget][name] for summary in asked)) for name in names]
    top = max(choices, key=lambda each: each.kept.value)
    seed = asked[0].suite.seed
    return next(each for each in choices if each is top or not differs(top.samples, each.samples, seed))
