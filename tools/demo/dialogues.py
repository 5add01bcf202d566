"""Generated dialogues in plain English: facts are told, other things are said, and the facts are asked for again.

A dialogue is a pure function of its seed. It knows no tokenizer and no model.
"""

import random
from collections.abc import Callable, Sequence

from tools.demo.facts import FACTS, Fact
from tools.demo.memory import ask, ask_unknown, book, correct, tell, tell_by_name, tell_two
from tools.demo.phrases import SYSTEM_FACTS, SYSTEMS
from tools.demo.small_talk import chat, define, echo, greet, remark
from tools.demo.turns import Dialogue, Message, Recall, Turn
from tools.demo.vocabulary import Split
from tools.demo.writer import Told, Writer

__all__ = ["MOVES", "Dialogue", "Message", "Moves", "Recall", "Turn", "write_dialogue"]

Moves = Sequence[tuple[float, Callable[[Writer], None]]]
"""What may come next in a dialogue, each with its weight."""

MOVES: Moves = (
    (0.21, tell),
    (0.03, tell_two),
    (0.05, tell_by_name),
    (0.36, ask),
    (0.05, correct),
    (0.04, ask_unknown),
    (0.02, book),
    (0.12, chat),
    (0.09, remark),
    (0.03, define),
    (0.01, echo),
)


def _open(writer: Writer) -> None:
    """The system prompt, which may itself tell a fact, and often a greeting."""
    if writer.rng.random() < 0.2:
        writer.system = writer.one_of(SYSTEMS)
    elif writer.rng.random() < 0.1:
        fact = writer.rng.choice([fact for fact in FACTS if fact.answer in SYSTEM_FACTS])
        told = Told(fact, "", writer.fill(fact.value), -1)
        writer.system = writer.fill(SYSTEM_FACTS[fact.answer], told.words)
        writer.told[told.key] = told
    if writer.rng.random() < 0.25:
        greet(writer)


def write_dialogue(
    seed: str, turns: int, split: Split, moves: Moves = MOVES, facts: Sequence[Fact] = FACTS
) -> Dialogue:
    """A dialogue of at least `turns` turns about `facts`, its words from one side of the split."""
    writer = Writer(random.Random(seed), split, facts)
    _open(writer)
    weights, choices = zip(*moves, strict=True)
    while len(writer.turns) < turns:
        writer.rng.choices(choices, weights)[0](writer)
    return Dialogue(writer.system, tuple(writer.turns))
