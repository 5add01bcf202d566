"""A dialogue while it is written: its turns, and what the user has told so far."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.demo.facts import FACTS, Fact
from tools.demo.turns import Recall, Turn
from tools.demo.vocabulary import Split, draw

BRACE = re.compile(r"\{([a-z]+)\}")

Key = tuple[str, str]  # a fact's answer and what it is about


@dataclass(slots=True)
class Told:
    """A fact the user has told: its value now, the turn that said it last, the person's name if told by name."""

    fact: Fact
    about: str
    value: str
    said_in: int
    name: str = ""

    @property
    def key(self) -> Key:
        return self.fact.answer, self.about

    @property
    def words(self) -> dict[str, str]:
        return {"s": self.about, "v": self.value, "n": self.name}

    @property
    def answer(self) -> str:
        """The assistant's answer; a person told by name is called by that name."""
        template = self.fact.named_answer if self.name else self.fact.answer
        return BRACE.sub(lambda brace: self.words[brace[1]], template)

    @property
    def says(self) -> tuple[str, ...]:
        return self.fact.named_says if self.name else self.fact.says


@dataclass(slots=True)
class Writer:
    """A dialogue being written, about `facts`."""

    rng: random.Random
    split: Split
    facts: Sequence[Fact] = FACTS
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    told: dict[Key, Told] = field(default_factory=dict)

    def say(self, user: str, assistant: str, recall: Recall | None = None) -> None:
        self.turns.append(Turn(user, assistant, recall))

    def one_of(self, templates: Sequence[str]) -> str:
        return self.rng.choice(templates)

    def user_line(self, templates: Sequence[str]) -> str:
        """A template as a user might type it: sometimes in lower case, sometimes without the last mark."""
        line = self.one_of(templates)
        if self.rng.random() < 0.12:
            line = line.lower()
        return line[:-1] if line[-1] in ".!?" and self.rng.random() < 0.12 else line

    def fill(self, template: str, words: dict[str, str] | None = None) -> str:
        """The template with a word drawn for each brace, or taken from `words`."""
        given = words or {}
        return BRACE.sub(lambda brace: given.get(brace[1]) or draw(brace[1], self.rng, self.split), template)
