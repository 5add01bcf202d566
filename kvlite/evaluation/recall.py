"""The recall suite: everyday dialogues in which facts are told, corrected, talked past and asked for again.

The dialogues are those the built-in model learnt from, with words held out of its training; any model that follows a
conversation in plain English can answer them. Names, colours, codes, dates, prices, places and more, with others of
the same kind between.
"""

from __future__ import annotations

from kvlite.demo.dialogues import Dialogue, Recall, write_dialogue
from kvlite.demo.words import Split
from kvlite.evaluation.conversation import Conversation, Probe, Turn


def write_recall(seed: str, turns: int, split: Split) -> Conversation:
    """A dialogue of at least `turns` turns, a pure function of its arguments."""
    dialogue = write_dialogue(seed, turns, split)
    spoken = (Turn(turn.user, turn.assistant, _probe(dialogue, turn.recall)) for turn in dialogue.turns)
    return Conversation(tuple(spoken))


def _probe(dialogue: Dialogue, recall: Recall | None) -> Probe | None:
    """The first question after the user said something; asked again, the model's own answer would be the source.

    What only the dialogue's system prompt says is never said here, and not counted.
    """
    if recall is None or recall.said_in < 0 or dialogue.turns[recall.said_in].recall is not None:
        return None
    return Probe((recall.value,), recall.said_in, getattr(recall, "steps", 1))
