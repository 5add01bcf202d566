"""Generated dialogues in plain English: facts are told, other things are said, and the facts are asked for again.

A dialogue is a pure function of its seed. It knows no tokenizer and no model.
"""

import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypedDict

from kvlite.demo.phrases import (
    BOOKING_DAY,
    BOOKING_DONE,
    BOOKING_FACT,
    BOOKING_HOUR,
    BOOKING_OPENS,
    BOOKINGS,
    CORRECTED,
    CORRECTIONS,
    DEFINITION_ASKS,
    FACTS,
    SYSTEMS,
    Fact,
)
from kvlite.demo.words import Split, draw

_BRACE = re.compile(r"\{([a-z]+)\}")


class Message(TypedDict):
    """One message as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Recall:
    """A value asked back, and the turn in which it was last said (-1: the system prompt)."""

    value: str
    said_in: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says and what the assistant answers; `recall` where the answer needs an earlier turn."""

    user: str
    assistant: str
    recall: Recall | None = None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A system prompt or None, and the turns."""

    system: str | None
    turns: tuple[Turn, ...]

    def messages(self) -> list[Message]:
        """The dialogue as chat messages."""
        messages = [Message(role="system", content=self.system)] if self.system else []
        for turn in self.turns:
            messages += [
                Message(role="user", content=turn.user),
                Message(role="assistant", content=turn.assistant),
            ]
        return messages


@dataclass(slots=True)
class _Told:
    """A fact the user has told: its value now and the turn that said it last."""

    fact: Fact
    about: str
    value: str
    said_in: int

    @property
    def answer(self) -> str:
        return self.fact.answer.replace("{s}", self.about).replace("{v}", self.value)


@dataclass(slots=True)
class _Writer:
    """A dialogue being written."""

    rng: random.Random
    split: Split
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    told: dict[tuple[str, str], _Told] = field(default_factory=dict)  # by (answer template, about)

    def say(self, user: str, assistant: str, recall: Recall | None = None) -> None:
        self.turns.append(Turn(user, assistant, recall))

    def one_of(self, templates: tuple[str, ...] | list[str]) -> str:
        return self.rng.choice(templates)

    def user_line(self, templates: tuple[str, ...] | list[str]) -> str:
        """A template as a user might type it: sometimes in lower case, sometimes without the last mark."""
        line = self.one_of(templates)
        if self.rng.random() < 0.12:
            line = line.lower()
        return line[:-1] if line[-1] in ".!?" and self.rng.random() < 0.12 else line

    def fill(self, template: str, words: dict[str, str] | None = None) -> str:
        """The template with a word drawn for each brace, or taken from `words`."""
        given = words or {}
        return _BRACE.sub(lambda brace: given.get(brace[1]) or draw(brace[1], self.rng, self.split), template)

    def new_fact(self) -> _Told:
        fact = self.rng.choice(FACTS)
        return _Told(fact, self.one_of(fact.about), self.fill(fact.value), len(self.turns))


def _tell(writer: _Writer) -> None:
    told = writer.new_fact()
    key = (told.fact.answer, told.about)
    if key in writer.told:
        return _correct(writer)
    writer.told[key] = told
    says = writer.fill(writer.user_line(told.fact.says), {"s": told.about, "v": told.value})
    acks = writer.one_of(told.fact.acks)
    return writer.say(says, writer.fill(acks, {"a": told.answer, "v": told.value}))


def _correct(writer: _Writer) -> None:
    if not writer.told:
        return _tell(writer)
    told = writer.rng.choice(list(writer.told.values()))
    if told.fact is BOOKING_FACT:
        return _ask(writer)
    told.value, told.said_in = writer.fill(told.fact.value), len(writer.turns)
    says = writer.fill(writer.one_of(told.fact.says), {"s": told.about, "v": told.value})
    user = writer.fill(writer.one_of(CORRECTIONS), {"says": says})
    return writer.say(user, writer.fill(writer.one_of(CORRECTED), {"a": told.answer}))


def _ask(writer: _Writer) -> None:
    if not writer.told:
        return _tell(writer)
    told = writer.rng.choice(list(writer.told.values()))
    recall = Recall(told.value, told.said_in)
    told.said_in = len(writer.turns)
    return writer.say(writer.fill(writer.user_line(told.fact.asks), {"s": told.about}), told.answer, recall)


def _ask_unknown(writer: _Writer) -> None:
    told = writer.new_fact()
    if (told.fact.answer, told.about) in writer.told:
        return _ask(writer)
    words = {"s": told.about}
    return writer.say(writer.fill(writer.user_line(told.fact.asks), words), writer.fill(told.fact.unknown, words))


def _book(writer: _Writer) -> None:
    wish, noun = writer.rng.choice(BOOKINGS)
    wish = writer.fill(wish)
    day, hour = draw("day", writer.rng, writer.split), draw("hour", writer.rng, writer.split)
    writer.say(writer.fill(writer.user_line(BOOKING_OPENS), {"b": wish}), BOOKING_DAY)
    writer.say(writer.one_of([day, f"{day}.", f"On {day}.", f"On {day}, please."]), BOOKING_HOUR)
    told = _Told(BOOKING_FACT, noun, f"{day} at {hour}", len(writer.turns))
    writer.told[(BOOKING_FACT.answer, noun)] = told
    done = writer.fill(BOOKING_DONE, {"b": wish, "day": day, "hour": hour})
    writer.say(writer.one_of([hour, f"At {hour}.", f"At {hour}, please."]), done)


@cache
def _talk() -> dict[str, list[dict[str, list[str]]]]:
    return tomllib.loads(Path(__file__).with_name("talk.toml").read_text("utf-8"))


def _chat(writer: _Writer) -> None:
    entry = writer.rng.choice(_talk()["fixed"])
    writer.say(writer.user_line(entry["says"]), writer.one_of(entry["answers"]))


def _remark(writer: _Writer) -> None:
    """A remark or a wish with words of its own, which the answer takes up in the same order."""
    entry = writer.rng.choice(_talk()["filled"])
    drawn: list[tuple[str, str]] = []

    def draw_new(brace: re.Match[str]) -> str:
        drawn.append((brace[1], draw(brace[1], writer.rng, writer.split)))
        return drawn[-1][1]

    user = _BRACE.sub(draw_new, writer.user_line(entry["says"]))
    seen: dict[str, list[str]] = {}
    for kind, word in drawn:
        seen.setdefault(kind, []).append(word)

    def take(brace: re.Match[str]) -> str:
        words = seen[brace[1]]
        return words.pop(0) if len(words) > 1 else words[0]

    writer.say(user, _BRACE.sub(take, writer.one_of(entry["answers"])))


def _define(writer: _Writer) -> None:
    thing, text = writer.rng.choice(list(_definitions().items()))
    writer.say(writer.fill(writer.user_line(DEFINITION_ASKS), {"d": thing}), text)


@cache
def _definitions() -> dict[str, str]:
    return dict(tomllib.loads(Path(__file__).with_name("talk.toml").read_text("utf-8"))["definitions"])


_MOVES: tuple[tuple[float, Callable[[_Writer], None]], ...] = (
    (0.25, _tell),
    (0.36, _ask),
    (0.05, _correct),
    (0.05, _ask_unknown),
    (0.02, _book),
    (0.13, _chat),
    (0.10, _remark),
    (0.04, _define),
)


def _open(writer: _Writer) -> None:
    """The system prompt, which may itself tell a fact, and often a greeting."""
    if writer.rng.random() < 0.2:
        writer.system = writer.one_of(SYSTEMS)
    elif writer.rng.random() < 0.1:
        name = FACTS[0]
        value = writer.fill(name.value)
        writer.system = f"The user's name is {value}."
        writer.told[(name.answer, "")] = _Told(name, "", value, -1)
    if writer.rng.random() < 0.25:
        greeting = _talk()["fixed"][0]
        writer.say(writer.user_line(greeting["says"]), greeting["answers"][0])


def write_dialogue(seed: str, turns: int, split: Split) -> Dialogue:
    """A dialogue of at least `turns` turns, its words from one side of the split."""
    writer = _Writer(random.Random(seed), split)
    _open(writer)
    weights, moves = zip(*_MOVES, strict=True)
    while len(writer.turns) < turns:
        writer.rng.choices(moves, weights)[0](writer)
    return Dialogue(writer.system, tuple(writer.turns))
