"""Retrieval suites in the spirit of RULER (https://arxiv.org/abs/2404.06654) and SCBench
(https://arxiv.org/abs/2412.10319), as conversations: needle, tracking, lookup.

Departures: what is looked for is said in one turn and asked in a later one, small talk takes the place of the filler
text, and the model's own answers stand in between. Each writer is a pure function of (seed, turns, split).
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from kvlite.evaluation.conversation import Conversation, Fact, Script, filled, read_facts
from kvlite.evaluation.vocabulary import Split, content

_CONTENT = content("retrieval.toml")
_LABELS, _KEYS, _MONTHS, _PLACES = (_CONTENT[name].split() for name in ("labels", "keys", "months", "places"))
_KINDS = read_facts(_CONTENT["kinds"])


def write_needle(seed: str, turns: int, split: Split) -> Conversation:
    """Facts of one kind are told, some corrected, and asked for in another order: the others are distractors."""
    script = Script(random.Random(seed), split, turns)
    while script.left:
        kind = script.rng.choice(_KINDS)
        told: dict[str, tuple[str, int]] = {}
        *values, corrected = _values(script, kind.kind, 5)
        for thing, value in zip(script.rng.sample(kind.about, 4), values, strict=True):
            told[thing] = value, _tell(script, kind, {"s": thing, "v": value})
            script.talk(script.rng.choice((0, 0, 1)))
        if script.rng.random() < 0.4:
            thing = script.rng.choice(list(told))
            said_in = _tell(script, kind, {"s": thing, "v": corrected}, "No, I was wrong. ", "All right.")
            told[thing] = corrected, said_in
        for thing in script.rng.sample(list(told), 3):
            script.talk()
            value, said_in = told[thing]
            words = {"s": thing, "v": value}
            question = filled(script.rng.choice(kind.asks), words)
            script.ask(question, filled(kind.answer, words), [value], said_in, kind.kind)
    return Conversation(tuple(script.turns))


def _tell(
    script: Script, fact: Fact, words: Mapping[str, str], opening: str = "", reply: str = "I will remember that."
) -> int:
    said = filled(script.rng.choice(fact.says), words)
    return script.say(f"{opening}{said}", f"{reply} {filled(fact.answer, words)}")


def _values(script: Script, kind: str, count: int) -> list[str]:
    """So many different values for facts of a kind."""
    match kind:
        case "code":
            return script.codes(count, 4)
        case "time":
            days = script.rng.sample(range(2, 29), count)
            return [f"{script.rng.choice(_MONTHS)} {day}" for day in days]
        case "price":
            return [str(price) for price in script.rng.sample(range(11, 99), count)]
        case "name":
            return script.words("name", count)
        case _:
            return script.rng.sample(_PLACES, count)


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
            script.say(f"The {box} box holds as many coins as the {source} box.", "All right.")
        script.talk()
        box = boxes[steps - 1]
        question, answer = f"How many coins are in the {box} box?", f"The {box} box holds {number} coins."
        script.ask(question, answer, [number], said_in, _counted(steps, "step"), steps)
    return Conversation(tuple(script.turns))


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
    return Conversation(tuple(script.turns))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
