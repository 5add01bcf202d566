"""Passages and dialogues with questions about them, in plain English for any chat model. Knows no tokenizer.

Each writer is a pure function of its random numbers, of the prose around what is told, and of the size in characters.
What a question asks for is said once, and its value is drawn at random, so that it can only come from what was read.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CHARS_BETWEEN = 720
"""Characters of a passage or dialogue for each question that is asked about it."""

_READ = "Read this text and remember what it says.\n\n"
_HAVE_READ = "I have read the text. You can ask me about it."
_KEEP = ("Please remember this: {} ", "Something to keep in mind: {} ", "Before I forget: {} ", "By the way: {} ")
_KEPT = ("All right, I will remember that.", "Good, I will keep that in mind.", "Thank you, I have noted it.")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{3,}\b|\b\d[\d,.]*\d\b")


@dataclass(frozen=True, slots=True)
class Question:
    """A question; a right answer is `lead`, then `value`. `where` is the place at which it was told, from 0 to 1."""

    ask: str
    lead: str
    value: str
    kind: str
    where: float


@dataclass(frozen=True, slots=True)
class Item:
    """Messages of the user and the assistant in turn, the user first, and questions that are each asked behind them.

    Where the last message is the user's, a question stands at its end; else it is a message of its own.
    """

    messages: tuple[str, ...]
    questions: tuple[Question, ...]


Writer = Callable[[random.Random, str, int], Item]
"""Writes an item from random numbers, prose, and a size in characters."""


def content(name: str) -> dict[str, Any]:
    """The TOML file of that name in this folder."""
    return tomllib.loads(Path(__file__).with_name(name).read_text("utf-8"))


@cache
def own_prose() -> str:
    """The first two chapters of The Wind in the Willows (Kenneth Grahame, 1908, public domain)."""
    return Path(__file__).with_name("prose.txt").read_text("utf-8")


@cache
def _words(kind: str) -> tuple[str, ...]:
    return tuple(content("words.toml")[kind].split())


@cache
def _facts(where: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = content("facts.toml")[where]
    return found


@cache
def _sentences(prose: str) -> tuple[str, ...]:
    return tuple(re.split(r"(?<=[.!?]['\"”’]) |(?<=[.!?]) (?=[A-Z'\"“‘])", re.sub(r"\s+", " ", prose).strip()))


def _hay(rng: random.Random, prose: str, size: int) -> list[str]:
    """Sentences of `prose` in a row, from a drawn one on, about `size` characters; behind the last comes the first."""
    sentences = _sentences(prose)
    at, found, length = rng.randrange(len(sentences)), list[str](), 0
    while length < size:
        sentence = sentences[at % len(sentences)][:size]
        found.append(sentence)
        length += len(sentence) + 1
        at += 1
    return found


def _value(rng: random.Random, kind: str) -> str:
    match kind:
        case "code":
            return str(rng.randrange(1000, 10**4))
        case "room":
            return str(rng.randrange(100, 1000))
        case "price":
            return str(rng.randrange(111, 990))
        case "time":
            return f"{rng.randrange(10, 24)}:{rng.randrange(10, 60)}"
        case _:
            return rng.choice(_words(kind))


def _drawn(rng: random.Random, where: str, count: int) -> Iterator[tuple[str, Question]]:
    """Facts about different things with different values, each with its question."""
    about = [(fact, thing) for fact in _facts(where) for thing in fact["about"]]
    used = set[str]()
    for fact, thing in rng.sample(about, min(count, len(about))):
        while (value := _value(rng, fact["value"])) in used:
            pass
        used.add(value)
        asks, answer = fact["asks"].format(x=thing), fact["answer"].format(x=thing)
        yield fact["says"].format(x=thing, v=value), Question(asks, f"{answer} ", value, fact["kind"], 0.0)


def _strewn(rng: random.Random, hay: Sequence[str], told: Sequence[str]) -> tuple[str, list[float]]:
    """The hay with `told` in it at even distances, in this order, and the place of each."""
    step = len(hay) / len(told)
    text, ends = "", list[int]()
    at = [min(len(hay), int(step * (number + rng.random()))) for number in range(len(told))]
    for index in range(len(hay) + 1):
        for number, sentence in enumerate(told):
            if at[number] == index:
                text += sentence + " "
                ends.append(len(text))
        text += (hay[index] + " ") if index < len(hay) else ""
    return text.rstrip(), [end / len(text) for end in ends]


def _count(size: int) -> int:
    return max(1, round(size / CHARS_BETWEEN))


def _read(text: str, questions: Sequence[Question]) -> Item:
    return Item((_READ + text, _HAVE_READ), tuple(questions))


def _placed(questions: Sequence[Question], where: Sequence[float]) -> list[Question]:
    return [Question(each.ask, each.lead, each.value, each.kind, at) for each, at in zip(questions, where, strict=True)]


def write_needles(rng: random.Random, prose: str, size: int) -> Item:
    """Facts in prose at several depths, each asked for in a later turn."""
    drawn = list(_drawn(rng, "prose", _count(size)))
    text, where = _strewn(rng, _hay(rng, prose, size), [says for says, _ in drawn])
    return _read(text, _placed([question for _, question in drawn], where))


def write_prompt(rng: random.Random, prose: str, size: int) -> Item:
    """As `write_needles`, with the question at the end of the message that holds the prose."""
    item = write_needles(rng, prose, size)
    return Item((item.messages[0].replace(_READ, "Read this text, then answer the question.\n\n"),), item.questions)


def write_dialogue(rng: random.Random, prose: str, size: int) -> Item:
    """Facts told amid small talk, asked for at its end; the last two exchanges are small talk."""
    drawn = list(_drawn(rng, "dialogue", _count(size)))
    talk = list[Sequence[str]]()
    left = size - sum(len(says) + 60 for says, _ in drawn)
    while left > 0:
        pool = content("talk.toml")["talk"]
        for exchange in rng.sample(pool, len(pool)):
            if left > 0:
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
    return Item(tuple(messages), tuple(_placed([question for _, question in drawn], [end / total for end in ends])))


def _names(rng: random.Random, count: int) -> list[str]:
    names = [f"{adjective}-{noun}" for adjective in _words("adjective") for noun in _words("noun")]
    return rng.sample(names, count)


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
    count = _count(size)
    names = _names(rng, 5 * count)
    numbers = [str(rng.randrange(10**6, 10**7)) for _ in names]
    told = [
        f"One of the special magic numbers for {name} is: {number}."
        for name, number in zip(names, numbers, strict=True)
    ]
    text, where = _strewn(rng, _hay(rng, prose, max(1, size - sum(map(len, told)))), told)
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
    count = _count(size)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = ["".join(rng.sample(letters, 5)) for _ in range(3 * count)]
    chains = [names[3 * at : 3 * at + 3] for at in range(count)]
    numbers = [str(number) for number in rng.sample(range(10000, 99999), count)]
    told = [
        f"VAR {name} = {f'VAR {chain[at - 1]}' if at else number}."
        for chain, number in zip(chains, numbers, strict=True)
        for at, name in enumerate(chain)
    ]
    text, where = _strewn(rng, _hay(rng, prose, max(1, size - sum(map(len, told)))), told)
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
    hay = _hay(rng, prose, size)
    places = [
        (index, gap)
        for index, sentence in enumerate(hay)
        if (gap := next((gap for gap in _NAME.finditer(sentence) if gap.start() > 30), None)) is not None
    ]
    text, ends, questions = " ".join(hay), list[int](), list[Question]()
    total = 0
    for sentence in hay:
        total += len(sentence) + 1
        ends.append(total)
    for index, gap in sorted(rng.sample(places, min(len(places), _count(size))), key=lambda place: place[0]):
        start = hay[index][: gap.start()]
        ask = f'A sentence of the text begins with "{start.strip()}". Write the whole sentence.'
        kind = "number" if gap.group()[0].isdigit() else "name"
        questions.append(Question(ask, start, gap.group(), kind, ends[index] / total))
    return _read(text, questions)
