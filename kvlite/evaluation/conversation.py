"""Conversations to hold with a model: messages, questions and the rule for a right answer; and how they are written.

Knows no tokenizer, no model and no template.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from kvlite.evaluation.vocabulary import Split, content, draw

BRACE = re.compile(r"\{([a-z]+)\}")

_GAPS = (0, 1, 2, 4, 8, 16, 24)  # turns of small talk, drawn evenly, so that every distance is asked for
_TRIES = 100  # to draw a word that was not said
_TALK: Sequence[tuple[str, str]] = content("small_talk.toml")["talk"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A question for something said earlier: the answer must hold all `values`, which turn `said_in` said last.

    Results are grouped by `kind`: the sort of value, or the way it is found. `steps` statements have to be joined for
    the answer: 1 for a fact, 2 where the question names it by another fact.
    """

    values: tuple[str, ...]
    said_in: int
    kind: str
    steps: int = 1

    def is_answered_by(self, answer: str) -> bool:
        """Look for every value in `answer`, as whole words and whole numbers, in any case, order and sentence."""
        return all(_standing_alone(value).search(answer) for value in self.values)


def _standing_alone(value: str) -> re.Pattern[str]:
    """The value neither in a longer word nor in a longer number; "14th" holds 14, "14.50" does not."""
    ordinal = "(?:st|nd|rd|th)?" if value[-1].isdigit() else ""
    return re.compile(rf"(?<!\w)(?<!\d[.,:]){re.escape(value)}{ordinal}(?!\w|[.,:]\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user, a right answer, and the probe where the message asks for something said earlier."""

    user: str
    answer: str
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns without a system prompt, so that nothing is pinned and the policy alone decides what is kept."""

    turns: tuple[Turn, ...]

    @property
    def probes(self) -> list[tuple[int, Probe]]:
        """The turns that ask for something said earlier, by number."""
        return [(number, turn.probe) for number, turn in enumerate(self.turns) if turn.probe is not None]


@dataclass(frozen=True, slots=True)
class Fact:
    """One kind of fact: its value, how it is said and asked for, and a right answer; facts.toml explains the fields."""

    kind: str
    says: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str
    value: str = ""
    about: tuple[str, ...] = ("",)
    named_says: tuple[str, ...] = ()
    named_asks: tuple[str, ...] = ()
    named_answer: str = ""
    weight: int = 1


read_facts = TypeAdapter(tuple[Fact, ...]).validate_python
"""The kinds of facts that a TOML file has."""


def filled(template: str, words: Mapping[str, str]) -> str:
    """The template with its braces replaced by `words`."""
    return BRACE.sub(lambda brace: words[brace[1]], template)


@dataclass(slots=True)
class Script:
    """Turns written so far, of `wanted`, with words from one side of the split; `told` holds those to be asked for."""

    rng: random.Random
    split: Split
    wanted: int
    turns: list[Turn] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    @property
    def left(self) -> int:
        """The turns that are still wanted."""
        return max(0, self.wanted - len(self.turns))

    def say(self, user: str, answer: str, probe: Probe | None = None) -> int:
        """Add a turn and return its number."""
        self.turns.append(Turn(user, answer, probe))
        return len(self.turns) - 1

    def ask(self, user: str, answer: str, values: Sequence[str], said_in: int, kind: str, steps: int = 1) -> None:
        """Add a turn that asks for something told before."""
        self.say(user, answer, Probe(tuple(values), said_in, kind, steps))

    def talk(self, turns: int | None = None) -> None:
        """Small talk: so many turns, or a drawn number that leaves room for one more."""
        for _ in range(min(self.rng.choice(_GAPS), max(0, self.left - 1)) if turns is None else turns):
            user, answer = self.rng.choice(_TALK)
            words = {kind: self.word(kind) for kind in BRACE.findall(user)}
            self.say(filled(user, words), filled(answer, words))

    def word(self, kind: str) -> str:
        """A word of a kind that is not among those told, as long as the kind has such words."""
        for _ in range(_TRIES):
            word = draw(kind, self.rng, self.split)
            if word.casefold() not in self.told:
                break
        return word

    def value(self, kind: str) -> str:
        """A word of a kind that is to be asked for: no later word of this conversation will be the same."""
        word = self.word(kind)
        self.told.add(word.casefold())
        return word

    def words(self, kind: str, count: int) -> list[str]:
        """Different words of a kind of which there are plenty (names, cities), none of them a part of another."""
        found: list[str] = []
        while len(found) < count:
            word = self.word(kind)
            if not any(word.casefold() in other.casefold() or other.casefold() in word.casefold() for other in found):
                found.append(word)
        return found

    def codes(self, count: int, digits: int) -> list[str]:
        """Different numbers of so many digits, none of which starts with 0."""
        return [str(code) for code in self.rng.sample(range(10 ** (digits - 1), 10**digits), count)]
