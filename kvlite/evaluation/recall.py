"""The recall suite: everyday conversations in which facts are told, corrected, talked past and asked for later.

Names, colours, codes, dates, prices, lists and more, with others of the same kind between, and facts that are found
through another: "My sister is called Ann. Ann lives in Riga." The sentences are plain English for any chat model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from kvlite.evaluation.conversation import BRACE, Conversation, Fact, Script, filled, read_facts
from kvlite.evaluation.vocabulary import Split, content

_CONTENT = content("facts.toml")
FACTS = read_facts([_CONTENT["name_of"], *_CONTENT["facts"]])
NAME_OF = FACTS[0]  # of a person or an animal, by which other facts may be said of them

_ACKS = ("I will remember that.", "All right.")
_CORRECTED = ("Thank you for telling me.", "I see.")
_CORRECTIONS = ("No, wait.", "Sorry, that was wrong.", "I made a mistake.", "Actually, that has changed.")
_PEOPLE_FACTS = tuple(fact for fact in FACTS if fact.named_says)

_GAPS = (0, 2, 4, 8, 12, 16, 24, 32)  # turns between a fact and its question, drawn evenly from those that fit
_TELL, _TELL_BY_NAME, _CORRECT = 0.42, 0.16, 0.08  # shares of the turns that ask nothing; the others are small talk
_BY_NAME_SHARE = 0.4  # questions that name the person, of those about a person told by name

Key = tuple[str, str]  # a fact's answer and what it is about


@dataclass(slots=True)
class _Told:
    """A fact the user has told: the words of its value, the turn that said it last, the turn from which it is asked."""

    fact: Fact
    about: str
    value: str
    values: tuple[str, ...]
    said_in: int
    due: int
    name: str = ""  # of the person, where the fact was said of that name

    @property
    def key(self) -> Key:
        return self.fact.answer, self.about

    @property
    def words(self) -> dict[str, str]:
        return {"s": self.about, "v": self.value, "n": self.name}

    @property
    def answer(self) -> str:
        return filled(self.fact.named_answer if self.name else self.fact.answer, self.words)


@dataclass(slots=True)
class _Story(Script):
    """A conversation about facts: everything told, and what of it waits to be asked for."""

    facts: dict[Key, _Told] = field(default_factory=dict)
    waiting: list[_Told] = field(default_factory=list)

    def go_on(self) -> None:
        """Ask for what is due, or tell, correct or say something else."""
        due = min(self.waiting, key=lambda told: told.due, default=None)
        if due is not None and due.due <= len(self.turns):
            self.waiting.remove(due)
            return self._ask(due)
        moves = (self._tell, self._tell_by_name, self._correct, self._talk)
        shares = (_TELL, _TELL_BY_NAME, _CORRECT, 1 - _TELL - _TELL_BY_NAME - _CORRECT)
        return self.rng.choices(moves, shares)[0]() if self.facts else self._tell()

    def _talk(self) -> None:
        self.talk(1)

    def _drawn(self, fact: Fact, about: str) -> _Told:
        values = [self.value(kind) for kind in BRACE.findall(fact.value)]
        value = BRACE.sub("{}", fact.value).format(*values)
        said_in = len(self.turns)
        gap = self.rng.choice([gap for gap in _GAPS if gap + 1 < self.left] or [0])
        return _Told(fact, about, value, tuple(values), said_in, said_in + 1 + gap)

    def _tell(self) -> None:
        """Tell a fact, or talk where it was told before."""
        fact = self.rng.choices(FACTS, [fact.weight for fact in FACTS])[0]
        about = self.rng.choice(fact.about)
        return self._talk() if (fact.answer, about) in self.facts else self._keep(self._drawn(fact, about))

    def _tell_by_name(self) -> None:
        """As `_tell`, of a person's name, together with the name where that is new."""
        fact = self.rng.choice(_PEOPLE_FACTS)
        about = self.rng.choice(fact.about)
        if (fact.answer, about) in self.facts:
            return self._talk()
        person = self.facts.get((NAME_OF.answer, about))
        if person is not None:
            return self._keep(replace(self._drawn(fact, about), name=person.value))
        person = self._drawn(NAME_OF, about)
        self.facts[person.key] = person
        opening = filled(self.rng.choice(NAME_OF.says), person.words)
        told = replace(self._drawn(fact, about), name=person.value)
        return self._keep(told, opening, f"{self.rng.choice(_ACKS)} {person.answer}")

    def _correct(self) -> None:
        """Give a new value to a fact that waits to be asked for; a name by which other facts were told stays."""
        named = {told.name for told in self.facts.values()}
        choices = [told for told in self.waiting if told.value not in named]
        if not choices:
            return self._talk()
        old = self.rng.choice(choices)
        self.waiting.remove(old)
        new = replace(self._drawn(old.fact, old.about), name=old.name)
        return self._keep(new, self.rng.choice(_CORRECTIONS), self.rng.choice(_CORRECTED))

    def _keep(self, told: _Told, opening: str = "", answer: str | None = None) -> None:
        """Say a fact behind `opening`; the answer says it back behind `answer`."""
        self.facts[told.key] = told
        self.waiting.append(told)
        says = told.fact.named_says if told.name else told.fact.says
        said = filled(self.rng.choice(says), told.words)
        self.say(f"{opening} {said}".strip(), f"{answer or self.rng.choice(_ACKS)} {told.answer}")

    def _ask(self, told: _Told) -> None:
        asks, answer, kind, steps = told.fact.asks, told.answer, told.fact.kind, 1
        if told.name and self.rng.random() < _BY_NAME_SHARE:
            asks = told.fact.named_asks
        elif told.name:
            answer = f"{self.facts[NAME_OF.answer, told.about].answer} {answer}"
            kind, steps = "two-hop", 2
        self.ask(filled(self.rng.choice(asks), told.words), answer, told.values, told.said_in, kind, steps)


def write_recall(seed: str, turns: int, split: Split) -> Conversation:
    """A conversation of `turns` turns, a pure function of its arguments; each fact is asked for at most once.

    A second question would find the model's own answer to the first.
    """
    story = _Story(random.Random(seed), split, turns)
    while story.left:
        story.go_on()
    return Conversation(tuple(story.turns))
