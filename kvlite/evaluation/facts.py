"""The kinds of facts that the recall suite tells and asks for, read from facts.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Fact:
    """One kind of fact: its value, how it is said and asked for, and a right answer; facts.toml explains the fields."""

    kind: str
    value: str
    says: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str
    about: tuple[str, ...] = ("",)
    named_says: tuple[str, ...] = ()
    named_asks: tuple[str, ...] = ()
    named_answer: str = ""
    weight: int = 1


def _fact(entry: dict[str, Any]) -> Fact:
    fields: dict[str, Any] = {key: tuple(text) if isinstance(text, list) else text for key, text in entry.items()}
    return Fact(**fields)


_CONTENT = tomllib.loads(Path(__file__).with_name("facts.toml").read_text("utf-8"))

NAME_OF = _fact(_CONTENT["name_of"])
"""The name of a person or an animal, by which other facts may be said of them."""

FACTS: tuple[Fact, ...] = (NAME_OF, *map(_fact, _CONTENT["facts"]))
