"""The recall suite: everyday dialogues in which facts are told, corrected, talked past and asked for again.

The dialogues are those the built-in model learnt from, with words held out of its training; any model that follows a
conversation in plain English can answer them. Names, colours, codes, dates, prices, lists and more, with others of the
same kind between, and facts that are found through another: "My sister is called Ann. Ann lives in Riga."
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from kvlite.demo.dialogues import Dialogue, Moves, Recall, write_dialogue
from kvlite.demo.facts import FACTS, Fact
from kvlite.demo.memory import ask, book, correct, tell, tell_by_name, tell_two
from kvlite.demo.small_talk import chat, define, echo, remark
from kvlite.demo.words import Split
from kvlite.evaluation.conversation import Conversation, Probe, Turn

_SPARE = 2
"""So many times the turns are written: questions that are left out make the dialogue shorter."""

_MOVES: Moves = (  # many questions, because those for what was asked for already are left out
    (0.15, tell),
    (0.03, tell_two),
    (0.10, tell_by_name),
    (0.60, ask),
    (0.06, correct),
    (0.02, book),
    (0.10, chat),
    (0.08, remark),
    (0.02, define),
    (0.01, echo),
)
_TIMES = {"list": 4, "price": 3}
"""How often a fact of these kinds stands among those that are drawn from, so that each kind is asked for."""


def _facts() -> tuple[Fact, ...]:
    """The facts to draw from; lists do not grow, so that one turn says all of one."""
    return tuple(replace(fact, adds=()) for fact in FACTS for _ in range(_TIMES.get(fact.kind, 1)))


_FACTS = _facts()


def write_recall(seed: str, turns: int, split: Split) -> Conversation:
    """A dialogue of about `turns` turns, a pure function of its arguments.

    What was said once is asked for once, early or late, because a second question would find the model's own answer to
    the first. The dialogue's other questions are left out, and those about what the user did not say in one turn.
    """
    dialogue = write_dialogue(seed, _SPARE * turns, split, _MOVES, _FACTS)
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
        probe = None if turn.recall is None else _probe(turn.recall, place[_source(dialogue, turn.recall)])
        spoken.append(Turn(turn.user, turn.assistant, probe))
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


def _probe(recall: Recall, said_in: int) -> Probe:
    """The items of a list may come back in any order."""
    values = re.split(", | and ", recall.value) if recall.kind == "list" else [recall.value]
    kind = "two-hop" if recall.steps > 1 else recall.kind
    return Probe(tuple(values), said_in, kind, recall.steps)
