"""A conversation being written for the suites after passkey, needle, tracking and lookup; and small talk to fill it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvlite.demo.words import Split, draw
from kvlite.evaluation.conversation import Conversation, Probe, Turn

_GAPS = (0, 1, 2, 4, 8, 16, 24)
"""Turns of small talk between what is said and what is asked; drawn evenly, so that every distance is asked for."""

_TALK: tuple[tuple[str, str], ...] = (
    ("It is raining again today.", "I hope it stops soon."),
    ("The bus was late this morning.", "That is annoying."),
    ("I had {food} for lunch.", "That sounds tasty."),
    ("Yesterday I went for a walk by the river.", "That sounds nice."),
    ("I am a bit tired today.", "Then take a rest."),
    ("My neighbour is playing the piano.", "I hope it is a good song."),
    ("I think I will go to bed early.", "Sleep well!"),
    ("The garden looks lovely now.", "How nice."),
    ("I have been reading a long book about {animal}s.", "I hope you enjoy it."),
    ("What should I do this evening?", "You could read a book or go for a walk."),
    ("I want to learn more about {hobby}.", "That is a good idea."),
    ("Do you like {food}?", "I cannot eat, but many people like it."),
    ("Tell me something nice.", "You are doing well today."),
    ("The shops were full of people.", "It must have been busy."),
    ("I drank a cup of {drink}.", "I hope it was good."),
    ("It was cold last night.", "Keep warm!"),
    ("I saw a {animal} in the park.", "How lovely."),
    ("Somebody is at the door.", "You should have a look."),
    ("My phone is almost empty.", "You should charge it."),
    ("We watched an old film together.", "I hope you liked it."),
    ("How are you?", "I am fine, thank you."),
    ("I must clean the kitchen later.", "Good luck with it."),
    ("The train to {city} is always full.", "That must be tiring."),
    ("I would like to visit {city} one day.", "I hope you can go there."),
    ("My friend {name} says hello.", "Hello to your friend, too."),
    ("Thank you for your help.", "You are welcome."),
)


@dataclass(slots=True)
class Script:
    """Turns written so far, of `wanted`, with words from one side of the split."""

    rng: random.Random
    split: Split
    wanted: int
    turns: list[Turn] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many turns are still wanted."""
        return max(0, self.wanted - len(self.turns))

    def say(self, user: str, answer: str, probe: Probe | None = None) -> int:
        """Add a turn and return its number."""
        self.turns.append(Turn(user, answer, probe))
        return len(self.turns) - 1

    def ask(self, user: str, answer: str, values: Sequence[str], said_in: int, kind: str, steps: int = 1) -> None:
        """Add a turn that asks something back."""
        self.say(user, answer, Probe(tuple(values), said_in, kind, steps))

    def talk(self, turns: int | None = None) -> None:
        """Small talk: so many turns, or a drawn number that leaves room for one more."""
        for _ in range(min(self.rng.choice(_GAPS), max(0, self.left - 1)) if turns is None else turns):
            user, answer = self.rng.choice(_TALK)
            kind = user.partition("{")[2].partition("}")[0]
            self.say(user.replace(f"{{{kind}}}", self.word(kind)) if kind else user, answer)

    def word(self, kind: str) -> str:
        """A word of a kind, as `kvlite.demo.words` draws them."""
        return draw(kind, self.rng, self.split)

    def words(self, kind: str, count: int) -> list[str]:
        """Different words of a kind of which there are plenty (names, cities), none of them a part of another."""
        found: list[str] = []
        while len(found) < count:
            word = self.word(kind)
            if not any(word.casefold() in other.casefold() or other.casefold() in word.casefold() for other in found):
                found.append(word)
        return found

    def code(self, digits: int = 5) -> str:
        """A number of so many digits, not starting with 0."""
        return str(self.rng.randrange(10 ** (digits - 1), 10**digits))

    def codes(self, count: int, digits: int = 5) -> list[str]:
        """Different numbers of so many digits."""
        return [str(code) for code in self.rng.sample(range(10 ** (digits - 1), 10**digits), count)]

    def written(self) -> Conversation:
        """The conversation."""
        return Conversation(tuple(self.turns))
