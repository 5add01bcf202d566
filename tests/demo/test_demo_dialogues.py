"""Generated dialogues: a function of the seed, held-out words held out, answers that follow from what was told."""

import random
from itertools import pairwise

import pytest

from tools.demo.dialogues import write_dialogue
from tools.demo.facts import FACTS
from tools.demo.memory import ask, correct, tell
from tools.demo.small_talk import chat, remark
from tools.demo.vocabulary import draw, held_out
from tools.demo.writer import Told, Writer

KINDS = (
    "name",
    "city",
    "word",
    "code",
    "number",
    "phone",
    "date",
    "clock",
    "price",
    "colour",
    "drink",
    "food",
    "job",
    "hobby",
    "animal",
    "place",
)
SEEDS = [str(number) for number in range(40)]


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_seed_gives_the_same_dialogue(split):
    assert write_dialogue("7", 20, split) == write_dialogue("7", 20, split)
    assert write_dialogue("7", 20, split) != write_dialogue("8", 20, split)


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_the_split_have_several_words_and_share_none(kind, rng):
    train = {draw(kind, rng, "train") for _ in range(300)}
    kept = {draw(kind, rng, "held-out") for _ in range(300)}
    assert len(train) >= 10
    assert len(kept) >= 2
    assert not train & kept
    assert all(map(held_out, kept))


def test_a_dialogue_has_at_least_the_turns_asked_for():
    assert all(len(write_dialogue(seed, 9, "train").turns) >= 9 for seed in SEEDS)


def test_no_brace_is_left_unfilled():
    for seed in SEEDS:
        text = str(write_dialogue(seed, 30, "train").messages())
        assert not any(brace in text for brace in ("{v}", "{s}", "{a}", "{b}", "{d}", "{says}", "{name}", "{word}"))


def test_an_answer_that_recalls_holds_the_value_and_so_does_the_turn_it_names():
    asked = 0
    for seed in SEEDS:
        dialogue = write_dialogue(seed, 30, "held-out")
        for turn in dialogue.turns:
            if turn.recall is None:
                continue
            asked += 1
            assert turn.recall.value in turn.assistant
            if turn.recall.said_in < 0:
                assert turn.recall.value in (dialogue.system or "")
            else:
                said = dialogue.turns[turn.recall.said_in]
                assert turn.recall.value in said.assistant or all(
                    word in said.user + said.assistant for word in turn.recall.value.split()
                )
    assert asked > 200


def test_facts_are_asked_from_near_and_far():
    distances = set()
    for seed in SEEDS:
        for number, turn in enumerate(write_dialogue(seed, 30, "train").turns):
            if turn.recall:
                distances.add(number - turn.recall.said_in)
    assert {1, 2, 5, 10, 15} <= distances


def test_messages_alternate_after_the_system_prompt():
    for seed in SEEDS:
        dialogue = write_dialogue(seed, 5, "train")
        roles = [message["role"] for message in dialogue.messages()]
        if dialogue.system:
            assert roles.pop(0) == "system"
        assert roles == ["user", "assistant"] * len(dialogue.turns)


def turns_of_many(split="train"):
    return [turn for seed in SEEDS for turn in write_dialogue(seed, 60, split).turns]


def test_a_question_in_two_steps_is_answered_through_the_persons_name():
    two_steps = [turn for turn in turns_of_many() if turn.recall and turn.recall.steps == 2]
    assert len(two_steps) > 20
    for turn in two_steps:
        person, fact = turn.assistant.split(". ", 1)
        name = person.rsplit(" ", 1)[1]
        assert name not in turn.user
        assert fact.startswith(name) and turn.recall.value in fact


@pytest.mark.parametrize("seed", SEEDS)
def test_a_correction_wins(seed):
    writer = Writer(random.Random(seed), "train")
    for move in (tell, correct, ask):
        move(writer)
    recall = writer.turns[-1].recall
    assert recall.said_in == len(writer.turns) - 2
    assert recall.value in writer.turns[-2].assistant


@pytest.mark.parametrize("seed", SEEDS)
def test_a_list_grows_by_what_is_added_or_is_replaced(seed):
    (shopping,) = [fact for fact in FACTS if fact.adds]
    writer = Writer(random.Random(seed), "train")
    writer.told[shopping.answer, ""] = told = Told(shopping, "", "ink, soap and string", 0)
    correct(writer)
    items = told.value.replace(" and ", ", ").split(", ")
    assert items[-1] in writer.turns[-1].user
    assert len(items) == 3 or items[:-1] == ["ink", "soap", "string"]


def test_what_was_just_said_is_said_back():
    echoed = 0
    for seed in SEEDS:
        for before, turn in pairwise(write_dialogue(seed, 60, "train").turns):
            if turn.assistant.startswith("You said:"):
                echoed += 1
                assert turn.assistant == f'You said: "{before.user}"'
    assert echoed > 5


@pytest.mark.parametrize("word", ["translate this", "plus", "summarise", "poem", "population"])
def test_what_is_too_much_for_it_is_declined(word):
    writer = Writer(random.Random(0), "train")
    for _ in range(1500):
        chat(writer)
        remark(writer)
    asked = [turn for turn in writer.turns if word in turn.user.lower()]
    assert asked
    assert all("small" in turn.assistant or "cannot" in turn.assistant for turn in asked)
