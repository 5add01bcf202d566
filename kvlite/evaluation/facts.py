"""The kinds of facts that the suites tell and ask for; recall's are read from facts.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Fact:
        """A kind of fact as a TOML file has it."""
        fields: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in entry.items()}
        return cls(**fields)


_CONTENT = tomllib.loads(Path(__file__).with_name("facts.toml").read_text("utf-8"))

NAME_OF = Fact.of(_CONTENT["name_of"])
"""The name of a person or an animal, by which other facts may be said of them."""

FACTS: tuple[Fact, ...] = (NAME_OF, *map(Fact.of, _CONTENT["facts"]))
