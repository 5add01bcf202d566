"""Generated dialogues: a function of the seed, held-out words held out, answers that follow from what was told."""

import pytest

from kvlite.demo.dialogues import write_dialogue
from kvlite.demo.words import draw, held_out

KINDS = ("name", "city", "word", "code", "number", "colour", "drink", "food", "job", "hobby", "animal", "place")
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
