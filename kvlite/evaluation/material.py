"""Passages and dialogues with questions about them, in plain English for any chat model. Knows no tokenizer.

Each writer is a pure function of its random numbers, of the prose around what is told, and of the size in characters.
What a question asks for is said once, and its value is drawn at random, so that it can only come from what was read.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from kvlite.evaluation.item import (
    Item,
    Question,
    content,
    drawn_facts,
    hay,
    placed,
    questions_in,
    strewn,
    words,
)

_READ = "Read this text and remember what it says.\n\n"
_HAVE_READ = "I have read the text. You can ask me about it."
_KEEP = ("Please remember this: {} ", "Something to keep in mind: {} ", "Before I forget: {} ", "By the way: {} ")
_KEPT = ("All right, I will remember that.", "Good, I will keep that in mind.", "Thank you, I have noted it.")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{3,}\b|\b\d[\d,.]*\d\b")


def _read(text: str, questions: Sequence[Question]) -> Item:
    return Item((_READ + text, _HAVE_READ), tuple(questions))


def write_needles(rng: random.Random, prose: str, size: int) -> Item:
    """Facts in prose at several depths, each asked for in a later turn."""
    drawn = list(drawn_facts(rng, "prose", questions_in(size)))
    text, where = strewn(rng, hay(rng, prose, size), [says for says, _ in drawn])
    return _read(text, placed([question for _, question in drawn], where))


def write_prompt(rng: random.Random, prose: str, size: int) -> Item:
    """As `write_needles`, with the question at the end of the message that holds the prose."""
    item = write_needles(rng, prose, size)
    return Item((item.messages[0].replace(_READ, "Read this text, then answer the question.\n\n"),), item.questions)


def write_dialogue(rng: random.Random, prose: str, size: int) -> Item:
    """Facts told amid small talk, asked for at its end; the last two exchanges are small talk."""
    drawn = list(drawn_facts(rng, "dialogue", questions_in(size)))
    talk = list[Sequence[str]]()
    left = size - sum(len(says) + 60 for says, _ in drawn)
    while left > 0 or len(talk) < 2:
        pool = content("talk.toml")["talk"]
        for exchange in rng.sample(pool, len(pool)):
            if left > 0 or len(talk) < 2:
                talk.append(exchange)
                left -= len(exchange[0]) + len(exchange[1])
    told = sorted(rng.randrange(max(1, len(talk) - 1)) for _ in drawn)
    messages, ends = list[str](), list[int]()
    for number, exchange in enumerate(talk):
        for index, (says, _) in enumerate(drawn):
            if told[index] == number:
                messages += [rng.choice(_KEEP).format(says).strip(), rng.choice(_KEPT)]
                ends.append(sum(map(len, messages)))
        messages += exchange
    total = sum(map(len, messages))
    return Item(tuple(messages), tuple(placed([question for _, question in drawn], [end / total for end in ends])))


def _names(rng: random.Random, count: int) -> list[str]:
    """Different names; where more are wanted than there are words for, some end in a number."""
    names = [f"{adjective}-{noun}" for adjective in words("adjective") for noun in words("noun")]
    rounds = range(2, 1 + math.ceil(count / len(names)))
    return rng.sample(names + [f"{name}-{number}" for number in rounds for name in names], count)


def write_lines(rng: random.Random, prose: str, size: int) -> Item:
    """Numbered lines as in LongEval (https://github.com/DachengLi1/LongChat), each asked for in a later turn."""
    names = _names(rng, max(1, size // 46))
    lines = [(name, str(rng.randrange(1000, 50000))) for name in names]
    asked = sorted(rng.sample(range(len(lines)), max(1, len(lines) // 8)))
    text = "\n".join(f"line {name}: REGISTER_CONTENT is <{number}>" for name, number in lines)
    questions = [
        Question(
            f"Tell me what is the <REGISTER_CONTENT> in line {name}? I need the number.",
            f"The <REGISTER_CONTENT> in line {name} is <",
            number,
            "line",
            (index + 1) / len(lines),
        )
        for index, (name, number) in ((index, lines[index]) for index in asked)
    ]
    return _read(text, questions)


def write_multikey(rng: random.Random, prose: str, size: int) -> Item:
    """Needles with many keys as in RULER (https://arxiv.org/abs/2404.06654); four of five are distractors."""
    count = questions_in(size)
    names = _names(rng, 5 * count)
    numbers = [str(rng.randrange(10**6, 10**7)) for _ in names]
    told = [
        f"One of the special magic numbers for {name} is: {number}."
        for name, number in zip(names, numbers, strict=True)
    ]
    text, where = strewn(rng, hay(rng, prose, max(1, size - sum(map(len, told)))), told)
    questions = [
        Question(
            f"What is the special magic number for {names[at]} mentioned in the provided text?",
            f"The special magic number for {names[at]} mentioned in the provided text is ",
            numbers[at],
            "key",
            where[at],
        )
        for at in (rng.randrange(5 * number, 5 * number + 5) for number in range(count))
    ]
    return _read(text, questions)


def write_tracking(rng: random.Random, prose: str, size: int) -> Item:
    """Variables that take their value from one another, as in RULER: three of each chain, all to be named."""
    count = questions_in(size)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = ["".join(rng.sample(letters, 5)) for _ in range(3 * count)]
    chains = [names[3 * at : 3 * at + 3] for at in range(count)]
    numbers = [str(number) for number in rng.sample(range(10000, 99999), count)]
    told = [
        f"VAR {name} = {f'VAR {chain[at - 1]}' if at else number}."
        for chain, number in zip(chains, numbers, strict=True)
        for at, name in enumerate(chain)
    ]
    text, where = strewn(rng, hay(rng, prose, max(1, size - sum(map(len, told)))), told)
    questions = [
        Question(
            f"Find all variables that are assigned the value {number} in the text above.",
            f"The variables that are assigned the value {number} in the text above are: ",
            ", ".join(chain),
            "chain",
            where[3 * at],
        )
        for at, (chain, number) in enumerate(zip(chains, numbers, strict=True))
    ]
    return _read(text, questions)


def write_cloze(rng: random.Random, prose: str, size: int) -> Item:
    """Sentences of the prose that stop before a name or number, to be gone on with word for word."""
    sentences = hay(rng, prose, size)
    places = [
        (index, gap)
        for index, sentence in enumerate(sentences)
        if (gap := next((gap for gap in _NAME.finditer(sentence) if gap.start() > 30), None)) is not None
    ]
    text, ends, questions = " ".join(sentences), list[int](), list[Question]()
    total = 0
    for sentence in sentences:
        total += len(sentence) + 1
        ends.append(total)
    for index, gap in sorted(rng.sample(places, min(len(places), questions_in(size))), key=lambda place: place[0]):
        start = sentences[index][: gap.start()]
        ask = f'A sentence of the text begins with "{start.strip()}". Write the whole sentence.'
        kind = "number" if gap.group()[0].isdigit() else "name"
        questions.append(Question(ask, start, gap.group(), kind, ends[index] / total))
    return _read(text, questions)
