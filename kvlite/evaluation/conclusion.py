"""One or two sentences on a suite: the cost of a budget and the policy to use, or why neither can be said."""

from __future__ import annotations

from collections.abc import Sequence

from kvlite.evaluation.intervals import Estimate, bootstrap
from kvlite.evaluation.summary import Line, Summary

LEAST_RIGHT = 0.8
"""Below this share of right answers under the full cache a suite says more about the model than about the policy."""

LEAST_ASKED = 5
"""Fewer questions than these say nothing of a model that gets them wrong."""


def conclusion(summary: Summary) -> str:
    """The conclusion from the numbers, or the reason why there is none."""
    suite, reference = summary.result.suite, summary.reference
    if not reference.count:
        return "Nothing was asked; give longer conversations, or more of them."
    if not suite.is_forced and reference.main.value < LEAST_RIGHT:
        if reference.count < LEAST_ASKED or reference.main.high >= LEAST_RIGHT:
            return (
                f"The full cache itself answers {reference.main.value:.0%} of these, and {reference.count} "
                f"{'question is' if reference.count == 1 else 'questions are'} too few to say whether the model is up "
                f"to the suite {suite.name}; give more --conversations."
            )
        return (
            f"The full cache itself answers only {reference.main.value:.0%} of these: this model is too small for the "
            f"suite {suite.name}, so nothing follows about budgets and policies."
        )
    budgets = _by_budget(summary)
    if not budgets:
        return f"The full cache: {_cost(summary, reference)}."
    chosen = _chosen(summary, budgets)
    if any(_is_beaten(summary, lines, chosen) for lines in budgets.values()):
        return " ".join(_at(summary, budget, lines) for budget, lines in budgets.items())
    costs = [f"{_cost(summary, lines[chosen])} at {budget}" for budget, lines in budgets.items() if chosen in lines]
    return (
        f"{'Use ' if len(_names(budgets)) > 1 else ''}{chosen}: {'; '.join(costs)}.{_doubt(summary, budgets, chosen)}"
    )


def _at(summary: Summary, budget: str, lines: dict[str, Line]) -> str:
    """The advice for one budget, where no variant is the best for all of them."""
    chosen = _chosen(summary, {budget: lines})
    alike = _alike(summary, lines, chosen)
    doubt = f" ({_listed(alike)} cannot be told from it)" if alike else ""
    return f"At {budget} use {chosen}: {_cost(summary, lines[chosen])}{doubt}."


def _by_budget(summary: Summary) -> dict[str, dict[str, Line]]:
    """The lines that are compared, by budget and name; of text scored at several T the smallest, as when decoding."""
    budgets: dict[str, dict[str, Line]] = {}
    for line in sorted(summary.lines[1:], key=lambda line: -line.placed.plan.chunk):
        budgets.setdefault(str(line.placed.variant.budget), {})[line.placed.variant.name] = line
    order = list(dict.fromkeys(str(line.placed.variant.budget) for line in summary.lines[1:]))
    return {budget: budgets[budget] for budget in order}


def _names(budgets: dict[str, dict[str, Line]]) -> list[str]:
    return list(dict.fromkeys(name for lines in budgets.values() for name in lines))


def _chosen(summary: Summary, budgets: dict[str, dict[str, Line]]) -> str:
    """The name with the best mean over the budgets that all names have."""
    sign = 1 if summary.higher_is_better else -1

    def score(name: str) -> tuple[int, float]:
        values = [lines[name].main.value for lines in budgets.values() if name in lines]
        return len(values), sign * sum(values) / len(values)

    return max(_names(budgets), key=score)


def _cost(summary: Summary, line: Line) -> str:
    """The result of a line, in words."""
    if not summary.result.suite.is_forced:
        kept = line.figures["of_full"]
        return f"{kept.value:.0%} of what the full cache answers {_percents(kept)}"
    if summary.result.suite.name == "kl":
        agreed = line.figures["agreement"].value
        return f"{line.main.value:.3f} nats from the full cache, the same first choice for {agreed:.1%} of the tokens"
    return f"perplexity {line.main.value:.2f} where the full cache has {summary.reference.main.value:.2f}"


def _percents(estimate: Estimate) -> str:
    return f"[{estimate.low:.0%} to {estimate.high:.0%}]"


def _doubt(summary: Summary, budgets: dict[str, dict[str, Line]], chosen: str) -> str:
    """The others that the measurement cannot tell from the chosen one, in words; empty where there are no others."""
    alike = {budget: _alike(summary, lines, chosen) for budget, lines in budgets.items()}
    close = [f"{_listed(names)} cannot be told from it at {budget}" for budget, names in alike.items() if names]
    if close:
        return f" But {'; '.join(close)}, with {summary.reference.count:,} {_counted(summary)}."
    return " Its lead over the others is more than chance." if len(_names(budgets)) > 1 else ""


def _alike(summary: Summary, lines: dict[str, Line], chosen: str) -> list[str]:
    """The names that the measurement cannot tell from the chosen one."""
    rivals = [name for name in lines if name != chosen and chosen in lines]
    return [name for name in rivals if not _differs(lines[chosen], lines[name], summary.result.suite.seed)]


def _is_beaten(summary: Summary, lines: dict[str, Line], chosen: str) -> bool:
    """True if another name did better than the chosen one, beyond chance."""
    if chosen not in lines:
        return False
    sign, alike = (1 if summary.higher_is_better else -1), _alike(summary, lines, chosen)
    value = lines[chosen].main.value
    return any(sign * line.main.value > sign * value for name, line in lines.items() if name not in alike)


def _counted(summary: Summary) -> str:
    return "tokens" if summary.result.suite.is_forced else "questions"


def _differs(one: Line, other: Line, seed: int) -> bool:
    """True if the interval of the difference, in pairs over conversations, leaves out zero."""
    pairs = list(zip(one.samples, other.samples, strict=True))

    def difference(drawn: Sequence[tuple[tuple[float, int], tuple[float, int]]]) -> float:
        counted = sum(first[1] for first, _ in drawn)
        return sum(first[0] - second[0] for first, second in drawn) / counted if counted else 0.0

    found = bootstrap(pairs, difference, seed)
    return found.low > 0 or found.high < 0


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
