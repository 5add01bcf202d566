"""What is said to follow from the numbers follows from them, and nothing is said where nothing does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvlite.evaluation.conclusion import LEAST_RIGHT, conclusion
from kvlite.evaluation.summary import Summary
from tests.evaluation.results import answered, scored, summary

RIGHT, WRONG = [True] * 5, [False] * 5
PERFECT = [RIGHT] * 20


def recall(**others: list[list[bool]]) -> Summary:
    return summary(answered(PERFECT), {(name, "50%"): answered(rights) for name, rights in others.items()})


def test_without_questions_nothing_follows() -> None:
    assert conclusion(summary(answered([[], []]), {("window", "50%"): answered([[], []])})).startswith(
        "Nothing was asked"
    )


def test_where_the_full_cache_itself_fails_no_policy_is_recommended() -> None:
    weak = [[True, True, True, False, False]] * 20
    said = conclusion(summary(answered(weak), {("window", "50%"): answered(PERFECT), ("h2o", "50%"): answered(weak)}))
    assert "only 60%" in said and "too small" in said
    assert "window" not in said and "h2o" not in said


def test_a_few_wrong_answers_say_nothing_of_the_model() -> None:
    said = conclusion(summary(answered([[False]]), {("window", "50%"): answered([[True]])}))
    assert "1 question is too few to say" in said and "too small" not in said and "window" not in said


def test_at_the_least_share_right_a_policy_is_recommended() -> None:
    enough = [[True] * 4 + [False]] * 20
    assert LEAST_RIGHT == 0.8
    assert conclusion(summary(answered(enough), {("window", "50%"): answered(enough)})).startswith(
        "At 50% window: 100%"
    )


def test_the_full_cache_alone_is_described() -> None:
    assert (
        conclusion(summary(answered(PERFECT), {}))
        == "The full cache: 100% of what the full cache answers [96% to 100%]."
    )


def test_the_only_policy_is_described_and_not_recommended() -> None:
    assert conclusion(recall(window=PERFECT)) == "At 50% window: 100% of what the full cache answers [96% to 100%]."


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
    assert said.startswith("At 20% use h2o: 100% of what the full cache answers")
    assert " At 50% use window: 100% of" in said


def test_of_several_t_the_smallest_decides_as_in_decoding() -> None:
    others = {("window", "50%", 512): scored([0.0] * 8), ("window", "50%", 1): scored([0.9] * 8),
              ("h2o", "50%", 512): scored([0.5] * 8), ("h2o", "50%", 1): scored([0.4] * 8)}  # fmt: skip
    said = conclusion(summary(scored([0.0] * 8), others, "kl"))
    assert said.startswith(
        "At 50% use h2o: 0.400 nats from the full cache, the same first choice for 100.0% of the tokens"
    )


def test_less_perplexity_is_better() -> None:
    others = {("window", "50%"): scored([0.9] * 8), ("h2o", "50%"): scored([0.1] * 8)}
    assert conclusion(summary(scored([0.0] * 8), others, "ppl")).startswith(
        "At 50% use h2o: perplexity 3.00 where the full"
    )


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
        "At 50% use window: 100% of what the full cache answers [96% to 100%] (tova cannot be told from it)."
    )
