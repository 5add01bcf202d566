"""The kinds of facts a user states in the generated dialogues, read from facts.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACKS = ("I will remember that. {a}", "All right. {a}")


@dataclass(frozen=True, slots=True)
class Fact:
    """One kind of fact: how it is said, asked back and answered, and the answer while nobody has said it.

    The `named_*` phrases say it of a person by name, so that a question about "my sister" takes two steps: who she is,
    and what was said of her. `adds` puts another word into a value that is a list. `kind` sorts results.
    """

    kind: str
    value: str  # kinds of words, in braces
    says: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str
    unknown: str
    about: tuple[str, ...] = ("",)
    acks: tuple[str, ...] = ACKS
    named_says: tuple[str, ...] = ()
    named_asks: tuple[str, ...] = ()
    named_answer: str = ""
    adds: tuple[str, ...] = ()


def _fact(entry: dict[str, Any]) -> Fact:
    fields: dict[str, Any] = {key: tuple(text) if isinstance(text, list) else text for key, text in entry.items()}
    return Fact(**fields)


def _facts() -> tuple[Fact, ...]:
    entries = tomllib.loads(Path(__file__).with_name("facts.toml").read_text("utf-8"))["facts"]
    return tuple(map(_fact, entries))


FACTS: tuple[Fact, ...] = _facts()
NAME_OF = FACTS[1]  # the name of somebody or some animal of the user's
