"""One or two sentences on a suite: the cost of a budget and the policy to use, or why neither can be said."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from kvlite.evaluation.intervals import bootstrap
from kvlite.evaluation.summary import Line, Summary

LEAST_RIGHT = 0.8
"""Below this share of right answers under the full cache a suite says more about the model than about the policy."""

LEAST_ASKED = 5
"""Fewer questions than these say nothing of a model that gets them wrong."""


def conclusion(summary: Summary) -> str:
    """The conclusion from the numbers, or the reason why there is none."""
    suite, reference, budgets = summary.result.suite, summary.reference, summary.by_budget
    if not reference.count:
        return "Nothing was asked; give longer conversations, or more of them."
    if not suite.is_forced and reference.main.value < LEAST_RIGHT:
        return _too_weak(summary)
    if not budgets:
        return f"The full cache: {_cost(summary, reference)}."
    chosen = _best(summary, budgets.values())
    if any(_is_beaten(summary, lines, chosen) for lines in budgets.values()):
        return " ".join(_at(summary, budget, lines) for budget, lines in budgets.items())
    costs = "; ".join(f"{_cost(summary, lines[chosen])} at {budget}" for budget, lines in budgets.items())
    if all(len(lines) == 1 for lines in budgets.values()):
        return f"{chosen}: {costs}."
    alike = {budget: _alike(summary, lines, chosen) for budget, lines in budgets.items()}
    close = [f"{_listed(names)} cannot be told from it at {budget}" for budget, names in alike.items() if names]
    counted = f"{reference.count:,} {'tokens' if suite.is_forced else 'questions'}"
    doubt = f"But {'; '.join(close)}, with {counted}." if close else "Its lead over the others is more than chance."
    return f"Use {chosen}: {costs}. {doubt}"


def _too_weak(summary: Summary) -> str:
    """The full cache's own share, and whether it says something of the model."""
    suite, reference = summary.result.suite, summary.reference
    share = f"{reference.main.value:.0%} of these"
    if reference.count < LEAST_ASKED or reference.main.high >= LEAST_RIGHT:
        return (
            f"The full cache itself answers {share}, and {reference.count} "
            f"{'question is' if reference.count == 1 else 'questions are'} too few to say whether the model is up "
            f"to the suite {suite.name}; give more --conversations."
        )
    return (
        f"The full cache itself answers only {share}: this model is too small for the "
        f"suite {suite.name}, so nothing follows about budgets and policies."
    )


def _at(summary: Summary, budget: str, lines: Mapping[str, Line]) -> str:
    """The advice for one budget, where no variant is the best for all of them."""
    chosen = _best(summary, [lines])
    alike = _alike(summary, lines, chosen)
    doubt = f" ({_listed(alike)} cannot be told from it)" if alike else ""
    return f"At {budget} use {chosen}: {_cost(summary, lines[chosen])}{doubt}."


def _best(summary: Summary, budgets: Collection[Mapping[str, Line]]) -> str:
    """The name with the best mean over the budgets."""
    return max(next(iter(budgets)), key=lambda name: sum(_worth(summary, lines[name]) for lines in budgets))


def _is_beaten(summary: Summary, lines: Mapping[str, Line], chosen: str) -> bool:
    """True if another name did better than the chosen one, beyond chance."""
    alike, worth = _alike(summary, lines, chosen), _worth(summary, lines[chosen])
    return any(_worth(summary, line) > worth for name, line in lines.items() if name not in alike)


def _worth(summary: Summary, line: Line) -> float:
    """The main figure, negative where less is better."""
    return line.main.value if summary.higher_is_better else -line.main.value


def _alike(summary: Summary, lines: Mapping[str, Line], chosen: str) -> list[str]:
    """The other names that the measurement cannot tell from the chosen one."""
    seed = summary.result.suite.seed
    return [name for name in lines if name != chosen and not _differs(lines[chosen], lines[name], seed)]


def _differs(one: Line, other: Line, seed: int) -> bool:
    """True if the interval of the difference, in pairs over conversations, leaves out zero."""

    def difference(drawn: Sequence[tuple[tuple[float, int], tuple[float, int]]]) -> float:
        counted = sum(first[1] for first, _ in drawn)
        return sum(first[0] - second[0] for first, second in drawn) / counted if counted else 0.0

    found = bootstrap(list(zip(one.samples, other.samples, strict=True)), difference, seed)
    return found.low > 0 or found.high < 0


def _cost(summary: Summary, line: Line) -> str:
    """The result of a line, in words."""
    if not summary.result.suite.is_forced:
        kept = line.figures["of_full"]
        return f"{kept.value:.0%} of what the full cache answers [{kept.low:.0%} to {kept.high:.0%}]"
    if summary.result.suite.name == "kl":
        agreed = line.figures["agreement"].value
        return f"{line.main.value:.3f} nats from the full cache, the same first choice for {agreed:.1%} of the tokens"
    return f"perplexity {line.main.value:.2f} where the full cache has {summary.reference.main.value:.2f}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
