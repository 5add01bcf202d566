"""Generated conversations: what is asked was said where it is recorded, and the same seed gives the same text."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.evaluation.conversation import Conversation, Probe
from kvlite.evaluation.recall import FACTS, write_recall
from kvlite.evaluation.suites import WRITERS, Writer

writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@writers
@given(seed=st.text("abc123", max_size=6))
def test_a_value_was_said_where_it_is_recorded_and_the_right_answer_holds_it(write: Writer, seed: str) -> None:
    conversation = write(seed, 40, "held-out")
    for number, probe in conversation.probes:
        assert 0 <= probe.said_in < number
        assert probe.is_answered_by(conversation.turns[probe.said_in].user)
        assert probe.is_answered_by(conversation.turns[number].answer)
        assert not probe.is_answered_by(conversation.turns[number].user)


@writers
def test_the_same_seed_gives_the_same_text_and_another_another(write: Writer) -> None:
    assert write("1", 30, "held-out") == write("1", 30, "held-out") != write("2", 30, "held-out")


@writers
def test_questions_are_asked(write: Writer) -> None:
    assert sum(len(write(str(seed), 30, "held-out").probes) for seed in range(8)) >= 8


def test_an_answer_holds_whole_words_whatever_the_case() -> None:
    probe = Probe(("17", "Rex"), 0, "name")
    assert probe.is_answered_by("rex is 17.")
    assert not probe.is_answered_by("Rex is 170.")


@pytest.mark.parametrize("answer", ["It is 17.", "On the 17th, I think.", "17!", "That is 17, not 18.", "(17)"])
def test_a_number_counts_however_it_stands_in_the_sentence(answer: str) -> None:
    assert Probe(("17",), 0, "number").is_answered_by(answer)


@pytest.mark.parametrize("answer", ["It was 17.50 euros.", "At 17:30.", "It is 3.17.", "117", "17thing"])
def test_a_part_of_another_number_does_not_count(answer: str) -> None:
    assert not Probe(("17",), 0, "number").is_answered_by(answer)


def test_a_list_is_right_in_any_order_and_however_it_is_joined() -> None:
    conversation = next(conversation for conversation in recalls(20) if "list" in kinds(conversation))
    probe = next(probe for _, probe in conversation.probes if probe.kind == "list")
    assert len(probe.values) == 3
    assert probe.is_answered_by(f"You need {probe.values[2]}, {probe.values[0]}, and {probe.values[1].upper()}!")
    assert not probe.is_answered_by(f"You need {probe.values[0]}.")


def test_recall_asks_for_every_kind_of_fact_lists_prices_and_two_hops_among_them() -> None:
    asked = Counter(kind for conversation in recalls(40) for kind in kinds(conversation))
    assert set(asked) == {fact.kind for fact in FACTS} | {"two-hop"}
    assert min(asked[kind] for kind in ("list", "price", "two-hop")) >= 20


def test_a_two_hop_question_names_neither_the_value_nor_the_name_it_is_found_by() -> None:
    for conversation in recalls(20):
        for number, probe in conversation.probes:
            turn = conversation.turns[number]
            if probe.kind == "two-hop":
                name = turn.answer.split(".")[0].rsplit(" ", 1)[1]
                assert probe.steps == 2
                assert name not in turn.user
                assert name in conversation.turns[probe.said_in].user


def recalls(count: int) -> list[Conversation]:
    return [write_recall(str(seed), 30, "held-out") for seed in range(count)]


def kinds(conversation: Conversation) -> list[str]:
    return [probe.kind for _, probe in conversation.probes]


@pytest.mark.parametrize(
    ("suite", "kinds"),
    [
        ("needle", {"code", "time", "price", "name", "place"}),
        ("tracking", {"1 step", "2 steps", "3 steps", "4 steps"}),
        ("lookup", {"1 key", "2 keys"}),
    ],
)
def test_questions_of_the_other_suites_have_kinds_too(suite: str, kinds: set[str]) -> None:
    asked = [probe for seed in range(20) for _, probe in WRITERS[suite](str(seed), 40, "held-out").probes]
    assert {probe.kind for probe in asked} == kinds
    assert all(probe.kind.startswith(str(probe.steps)) for probe in asked if suite == "tracking")
    assert all(probe.kind.startswith(str(len(probe.values))) for probe in asked if suite == "lookup")
