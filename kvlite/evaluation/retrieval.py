"""Retrieval suites in the spirit of RULER (https://arxiv.org/abs/2404.06654) and SCBench
(https://arxiv.org/abs/2412.10319), as conversations: passkey, needle, tracking, lookup.

Departures: what is looked for is said in one turn and asked in a later one, small talk takes the place of the filler
text, and the model's own answers stand in between. Each writer is a pure function of (seed, turns, split).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.script import Script
from kvlite.evaluation.vocabulary import Split


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LOCKS = ("safe", "garage", "office", "locker", "gate", "cellar", "archive", "boat house", "tool shed", "front door")
_LABELS = (
    *("red", "blue", "green", "white", "black", "yellow", "brown", "grey"),
    *("wooden", "iron", "small", "large", "round", "old", "new", "heavy"),
)
_EVENTS = ("meeting", "concert", "dentist appointment", "flight", "exam", "party", "interview", "wedding")
_GOODS = ("lamp", "chair", "bike", "coat", "cake", "ticket", "book", "hat", "umbrella", "kettle")
_KIN = ("sister", "brother", "cousin", "teacher", "neighbour", "boss", "friend", "uncle")
_OBJECTS = ("key", "map", "passport", "letter", "phone", "torch", "camera", "wallet")
_PLACES = ("garden", "kitchen", "library", "cellar", "attic", "drawer", "cupboard", "basket", "hall", "car")
_MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October", "November")
_KEYS = _words("""
    amber basil cedar delta ember fjord glade heron ivory jade kelp lotus maple north onyx pearl quartz raven
    sable tulip umber violet willow xenon yarrow zephyr acorn birch coral daisy elder fern grove hazel iris
""")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Facts of one kind about different things, `{s}`; `values` draws so many different ones."""

    name: str
    about: tuple[str, ...]
    says: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str
    values: Callable[[Script, int], list[str]]


def _dates(script: Script, count: int) -> list[str]:
    days = script.rng.sample(range(2, 29), count)
    return [f"{script.rng.choice(_MONTHS)} {day}" for day in days]


_KINDS = (
    _Kind(
        "code",
        _LOCKS,
        ("The code of the {s} is {v}.", "The {s} code is {v}.", "{v} is the code of the {s}."),
        ("What is the code of the {s}?", "Tell me the code of the {s}.", "Which code opens the {s}?"),
        "The code of the {s} is {v}.",
        lambda script, count: script.codes(count, 4),
    ),
    _Kind(
        "time",
        _EVENTS,
        ("My {s} is on {v}.", "The {s} will be on {v}.", "I have my {s} on {v}."),
        ("When is my {s}?", "On which date is my {s}?", "What is the date of my {s}?"),
        "Your {s} is on {v}.",
        _dates,
    ),
    _Kind(
        "price",
        _GOODS,
        ("The {s} costs {v} euros.", "I paid {v} euros for the {s}.", "The price of the {s} is {v} euros."),
        ("How much does the {s} cost?", "What is the price of the {s}?"),
        "The {s} costs {v} euros.",
        lambda script, count: [str(price) for price in script.rng.sample(range(11, 99), count)],
    ),
    _Kind(
        "name",
        _KIN,
        ("My {s} is called {v}.", "My {s}'s name is {v}."),
        ("What is my {s}'s name?", "What is my {s} called?"),
        "Your {s} is called {v}.",
        lambda script, count: script.words("name", count),
    ),
    _Kind(
        "place",
        _OBJECTS,
        ("The {s} is in the {v}.", "I put the {s} in the {v}.", "I left the {s} in the {v}."),
        ("Where is the {s}?", "Where did I put the {s}?"),
        "The {s} is in the {v}.",
        lambda script, count: script.rng.sample(_PLACES, count),
    ),
)


def write_passkey(seed: str, turns: int, split: Split) -> Conversation:
    """A pass key is told, talked past, asked for; then it changes."""
    script = Script(random.Random(seed), split, turns)
    key = ""
    while script.left:
        opening = "The pass key has changed." if key else "There is a pass key you must not forget."
        key = script.code()
        said_in = script.say(
            script.rng.choice((f"{opening} It is {key}.", f"{opening} The pass key is {key}. Remember it.")),
            f"The pass key is {key}.",
        )
        script.talk()
        question = script.rng.choice(
            ("What is the pass key?", "Tell me the pass key.", "Which pass key did I give you?")
        )
        script.ask(question, f"The pass key is {key}.", [key], said_in, "code")
    return script.written()


def write_needle(seed: str, turns: int, split: Split) -> Conversation:
    """Facts of one kind are told, some corrected, and asked for in another order: the others are distractors."""
    script = Script(random.Random(seed), split, turns)
    while script.left:
        kind = script.rng.choice(_KINDS)
        told: dict[str, tuple[str, int]] = {}
        *values, corrected = kind.values(script, 5)
        for thing, value in zip(script.rng.sample(kind.about, 4), values, strict=True):
            told[thing] = (value, _tell(script, kind, thing, value))
            script.talk(script.rng.choice((0, 0, 1)))
        if script.rng.random() < 0.4:
            thing = script.rng.choice(list(told))
            said_in = script.say(
                f"No, I was wrong. {_filled(script.rng.choice(kind.says), thing, corrected)}",
                f"All right. {_filled(kind.answer, thing, corrected)}",
            )
            told[thing] = (corrected, said_in)
        for thing in script.rng.sample(list(told), 3):
            script.talk()
            value, said_in = told[thing]
            question = _filled(script.rng.choice(kind.asks), thing, "")
            script.ask(question, _filled(kind.answer, thing, value), [value], said_in, kind.name)
    return script.written()


def write_tracking(seed: str, turns: int, split: Split) -> Conversation:
    """Boxes hold as many coins as other boxes: the number is said once and asked for up to four statements later."""
    script = Script(random.Random(seed), split, turns)
    while script.left:
        boxes = script.rng.sample(_LABELS, 6)
        number, other = (str(count) for count in script.rng.sample(range(11, 99), 2))
        said_in = script.say(f"The {boxes[0]} box holds {number} coins.", f"The {boxes[0]} box holds {number} coins.")
        script.say(f"The {boxes[5]} box holds {other} coins.", f"The {boxes[5]} box holds {other} coins.")
        steps = script.rng.randint(1, 4)
        for box, source in zip(boxes[1:steps], boxes, strict=False):
            script.talk(script.rng.choice((0, 1, 2)))
            linked = f"The {box} box holds as many coins as the {source} box."
            script.say(linked, "All right.")
        script.talk()
        box = boxes[steps - 1]
        question, answer = f"How many coins are in the {box} box?", f"The {box} box holds {number} coins."
        script.ask(question, answer, [number], said_in, _counted(steps, "step"), steps)
    return script.written()


def write_lookup(seed: str, turns: int, split: Split) -> Conversation:
    """A list of keys and numbers is given in one turn; single keys, and sometimes two at once, are asked for later."""
    script = Script(random.Random(seed), split, turns)
    while script.left:
        keys = script.rng.sample(_KEYS, script.rng.choice((4, 6, 8)))
        held = dict(zip(keys, script.codes(len(keys), 4), strict=True))
        listed = ", ".join(f"{key} {code}" for key, code in held.items())
        said_in = script.say(f"Keep this list for me: {listed}.", "I will keep the list.")
        unasked = script.rng.sample(keys, len(keys))
        while len(unasked) > len(keys) // 2:
            script.talk()
            asked = [unasked.pop() for _ in range(script.rng.choice((1, 1, 1, 2)))]
            codes = [held[key] for key in asked]
            question = f"What does the list say for {' and '.join(asked)}?"
            script.ask(question, f"The list says {' and '.join(codes)}.", codes, said_in, _counted(len(codes), "key"))
    return script.written()


def _tell(script: Script, kind: _Kind, thing: str, value: str) -> int:
    told = _filled(script.rng.choice(kind.says), thing, value)
    return script.say(told, f"I will remember that. {_filled(kind.answer, thing, value)}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _filled(template: str, thing: str, value: str) -> str:
    return template.replace("{s}", thing).replace("{v}", value)
