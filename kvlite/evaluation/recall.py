"""The recall suite: everyday dialogues in which facts are told, corrected, talked past and asked for again.

The dialogues are those the built-in model learnt from, with words held out of its training; any model that follows a
conversation in plain English can answer them. Names, colours, codes, dates, prices, places and more, with others of
the same kind between.
"""

from __future__ import annotations

import random

from kvlite.demo.dialogues import Dialogue, Recall, write_dialogue
from kvlite.demo.words import Split
from kvlite.evaluation.conversation import Conversation, Probe, Turn

_SPARE = 2
"""So many times the turns are written: questions that are left out make the dialogue shorter."""


def write_recall(seed: str, turns: int, split: Split) -> Conversation:
    """A dialogue of about `turns` turns, a pure function of its arguments.

    What was said once is asked for once, early or late, because a second question would find the model's own answer to
    the first. The dialogue's other questions are left out, and those about what the user did not say in one turn.
    """
    dialogue = write_dialogue(seed, _SPARE * turns, split)
    asked: dict[int, list[int]] = {}
    for number, turn in enumerate(dialogue.turns):
        if turn.recall is not None:
            asked.setdefault(_source(dialogue, turn.recall), []).append(number)
    rng = random.Random(f"{seed}/asked")
    kept = {rng.choice(numbers) for source, numbers in asked.items() if _is_said(dialogue, source, numbers[0])}
    left_out = {number for numbers in asked.values() for number in numbers} - kept
    order = [number for number in range(len(dialogue.turns)) if number not in left_out]
    place = {number: index for index, number in enumerate(order)}
    spoken = []
    for number in order[:turns]:
        turn = dialogue.turns[number]
        said_in = None if turn.recall is None else place[_source(dialogue, turn.recall)]
        spoken.append(Turn(turn.user, turn.assistant, _probe(turn.recall, said_in)))
    return Conversation(tuple(spoken))


def _is_said(dialogue: Dialogue, source: int, number: int) -> bool:
    """Whether turn `source` says all of what turn `number` asks for."""
    recall = dialogue.turns[number].recall
    return source >= 0 and recall is not None and recall.value.casefold() in dialogue.turns[source].user.casefold()


def _source(dialogue: Dialogue, recall: Recall) -> int:
    """The turn in which the user said what is asked for; -1 where the system prompt did."""
    while recall.said_in >= 0:
        earlier = dialogue.turns[recall.said_in].recall
        if earlier is None:
            break
        recall = earlier
    return recall.said_in


def _probe(recall: Recall | None, said_in: int | None) -> Probe | None:
    if recall is None or said_in is None:
        return None
    return Probe((recall.value,), said_in, getattr(recall, "steps", 1))
