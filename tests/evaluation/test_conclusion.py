"""What is said to follow from the numbers follows from them, and nothing is said where nothing does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvlite.evaluation.conclusion import conclusion, differs, recommendation
from kvlite.evaluation.summary import Summary
from tests.evaluation.results import answered, scored, summary

RIGHT, WRONG = [True] * 5, [False] * 5
PERFECT, WRONG_ALL = [RIGHT] * 20, [WRONG] * 20


def recall(**others: list[list[bool]]) -> Summary:
    return summary(answered(PERFECT), {(name, "50%"): answered(rights) for name, rights in others.items()})


def test_without_questions_nothing_follows() -> None:
    assert conclusion(summary(answered([[], []]), {("window", "50%"): answered([[], []])})).startswith(
        "Nothing was asked"
    )


def test_where_the_full_cache_itself_fails_no_policy_is_recommended() -> None:
    weak = [[True, True, False, False, False]] * 20
    found = summary(answered(weak), {("window", "50%"): answered(PERFECT), ("h2o", "50%"): answered(weak)})
    said = conclusion(found) + recommendation([found])
    assert "only 40%" in said and "left out" in said and "No budget is recommended" in said
    assert "window" not in said and "h2o" not in said


def test_a_few_wrong_answers_say_nothing_of_the_model() -> None:
    said = conclusion(summary(answered([[False]]), {("window", "50%"): answered([[True]])}))
    assert "1 question is too few to say" in said and "left out" not in said and "window" not in said


def test_the_full_cache_alone_is_described() -> None:
    assert conclusion(summary(answered(PERFECT), {})) == "The full cache answers 100% [96% to 100%] of these."


def test_the_only_policy_is_described_and_not_recommended() -> None:
    assert conclusion(recall(window=PERFECT)) == "At 50% window: 100% [96% to 100%] of what the full cache answers."


def test_a_clear_lead_is_more_than_chance() -> None:
    said = conclusion(recall(window=[WRONG] * 20, h2o=PERFECT))
    assert said.startswith("At 50% use h2o: 100%")
    assert said.endswith("(its lead is more than chance).")


def test_what_chance_explains_is_not_told_apart() -> None:
    one, other = [[*RIGHT[1:], True], *PERFECT[1:]], [[*RIGHT[1:], False], *PERFECT[1:]]
    said = conclusion(recall(window=other, h2o=one))
    assert said.startswith("At 50% use h2o")
    assert "(window cannot be told from it)" in said


def test_each_budget_has_its_own_recommendation() -> None:
    others = {("window", "20%"): answered([WRONG] * 20), ("h2o", "20%"): answered(PERFECT),
              ("window", "50%"): answered(PERFECT), ("h2o", "50%"): answered([[True] * 4 + [False]] * 20)}  # fmt: skip
    said = conclusion(summary(answered(PERFECT), others))
    assert said.startswith("At 20% use h2o: 100% [96% to 100%] of what")
    assert " At 50% use window: 100% " in said


def test_less_divergence_is_better() -> None:
    others = {("window", "50%"): scored([0.9] * 8), ("h2o", "50%"): scored([0.4] * 8)}
    said = conclusion(summary(scored([0.0] * 8), others, "kl"))
    assert said.startswith(
        "At 50% use h2o: 0.400 nats from the full cache, the same first choice for 100.0% of the tokens"
    )


def test_less_perplexity_is_better() -> None:
    others = {("window", "50%"): scored([0.9] * 8), ("h2o", "50%"): scored([0.1] * 8)}
    assert conclusion(summary(scored([0.0] * 8), others, "ppl")).startswith(
        "At 50% use h2o: perplexity 3.00, and 2.72 with the full cache (its lead"
    )


def test_of_few_items_nothing_is_said_about_chance() -> None:
    others = {("window", "50%"): scored([0.9] * 3), ("h2o", "50%"): scored([0.1] * 3)}
    found = summary(scored([0.0] * 3), others, "kl")
    assert conclusion(found).endswith("(3 texts are too few to say what is chance).")
    assert not any(differs(one.samples, other.samples, 0) for one in found.lines for other in found.lines)


@given(st.data())
def test_the_recommended_policy_has_the_highest_mean_and_a_doubt_never_names_it(data: st.DataObject) -> None:
    rights = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=6, max_size=6)
    drawn = {name: data.draw(rights) for name in ("window", "h2o", "tova")}
    found = summary(answered([[True] * 4] * 6), {(name, "50%"): answered(each) for name, each in drawn.items()})
    said = conclusion(found)
    best = max(line.main.value for line in found.lines[1:])
    winners = {line.placed.variant.name for line in found.lines[1:] if line.main.value == best}
    chosen = said.removeprefix("At 50% use ").split(":")[0]
    assert chosen in winners
    assert chosen not in said.partition("(")[2]


def test_at_a_budget_of_its_own_a_policy_is_told_from_the_others_too() -> None:
    half = [[True] * 2 + [False] * 3] * 20
    others = {("window", "20%"): answered([WRONG] * 20), ("h2o", "20%"): answered(PERFECT),
              ("window", "50%"): answered(PERFECT), ("h2o", "50%"): answered(half), ("tova", "50%"): answered(PERFECT),
              ("tova", "20%"): answered([WRONG] * 20)}  # fmt: skip
    said = conclusion(summary(answered(PERFECT), others))
    assert said.endswith(
        "At 50% use window: 100% [96% to 100%] of what the full cache answers (tova cannot be told from it)."
    )


# What to use on the model


def test_the_smallest_budget_that_keeps_nearly_all_is_recommended_with_its_best_variant() -> None:
    most = [[True] * 4 + [False]] * 20
    needles = recall_at({"10%": (WRONG_ALL, most), "20%": (most, PERFECT), "50%": (PERFECT, PERFECT)})
    said = recommendation([needles, needles])
    assert "--kv-policy h2o --kv-dtype auto (20% = " in said.partition("keeps")[0]
    assert "10%: 80% " in said and "50%: 100% " in said


def test_of_variants_that_cannot_be_told_apart_the_first_is_recommended() -> None:
    nearly = [[True] * 4 + [False], *PERFECT[1:]]
    assert "--kv-policy window" in recommendation([recall_at({"20%": (nearly, PERFECT)})]).partition("keeps")[0]


def test_where_no_budget_keeps_enough_the_largest_is_named_as_such() -> None:
    half = [[True] * 2 + [False] * 3] * 20
    assert "none of which keeps 90%: it keeps 40%" in recommendation([recall_at({"20%": (half, half)})])


def test_a_recommendation_from_few_questions_says_so() -> None:
    few, many = (summary(answered(PERFECT[:count]), {("h2o", "20%"): answered(PERFECT[:count])}) for count in (2, 20))
    assert recommendation([few]).endswith("10 questions are too few to be sure of it; give more --items.")
    assert "too few" not in recommendation([many])


def recall_at(rights: dict[str, tuple[list[list[bool]], list[list[bool]]]]) -> Summary:
    """Answers of window and h2o at each budget."""
    others = {
        (policy, budget): answered(found)
        for budget, both in rights.items()
        for policy, found in zip(("window", "h2o"), both, strict=True)
    }
    return summary(answered(PERFECT), others)
