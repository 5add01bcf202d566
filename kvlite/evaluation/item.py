"""An item to read, its questions, and what it is made of: prose, facts about things, values. Knows no tokenizer."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CHARS_BETWEEN = 640
"""Characters of a passage or dialogue for each question that is asked about it."""


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


LONGEST = 600
"""Characters of a piece of prose that is taken as one sentence; a longer one is no sentence and is cut."""

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
def words(kind: str) -> tuple[str, ...]:
    """The words of a kind."""
    return tuple(content("words.toml")[kind].split())


@cache
def _facts(where: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = content("facts.toml")[where]
    return found


_ENDS = re.compile(r"(?<=[.!?]['\"”’]) |(?<=[.!?]) (?=[A-Z'\"“‘])|(?<=[。！？])(?![。！？”’」』])")


@cache
def _sentences(prose: str) -> tuple[str, ...]:
    """The sentences of prose in any script; of a text that has none, pieces."""
    found = _ENDS.split(re.sub(r"\s+", " ", prose).strip())
    return tuple(piece for sentence in found for piece in _cut(sentence))


def _cut(sentence: str) -> Iterator[str]:
    """A sentence as it is, or pieces of about half of LONGEST, at spaces where there are any."""
    while len(sentence) > LONGEST:
        at = sentence.rfind(" ", 1, LONGEST // 2)
        at = at if at > 0 else LONGEST // 2
        yield sentence[:at]
        sentence = sentence[at:].lstrip()
    if sentence:
        yield sentence


def hay(rng: random.Random, prose: str, size: int) -> list[str]:
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
            return rng.choice(words(kind))


def drawn_facts(rng: random.Random, where: str, count: int) -> Iterator[tuple[str, Question]]:
    """Facts about different things with different values, each with its question."""
    about = [(fact, thing) for fact in _facts(where) for thing in fact["about"]]
    used = set[str]()
    for fact, thing in rng.sample(about, min(count, len(about))):
        while (value := _value(rng, fact["value"])) in used:
            pass
        used.add(value)
        asks, answer = fact["asks"].format(x=thing), fact["answer"].format(x=thing)
        yield fact["says"].format(x=thing, v=value), Question(asks, f"{answer} ", value, fact["kind"], 0.0)


def strewn(rng: random.Random, sentences: Sequence[str], told: Sequence[str]) -> tuple[str, list[float]]:
    """The sentences with `told` in it at even distances, in this order, and the place of each."""
    step = len(sentences) / len(told)
    text, ends = "", list[int]()
    at = [min(len(sentences), int(step * (number + rng.random()))) for number in range(len(told))]
    for index in range(len(sentences) + 1):
        for number, sentence in enumerate(told):
            if at[number] == index:
                text += sentence + " "
                ends.append(len(text))
        text += (sentences[index] + " ") if index < len(sentences) else ""
    return text.rstrip(), [end / len(text) for end in ends]


def questions_in(size: int) -> int:
    """The number of questions about so many characters."""
    return max(1, round(size / CHARS_BETWEEN))


def placed(questions: Sequence[Question], where: Sequence[float]) -> list[Question]:
    """The questions, each told at its place."""
    return [Question(each.ask, each.lead, each.value, each.kind, at) for each, at in zip(questions, where, strict=True)]
