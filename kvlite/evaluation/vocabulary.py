"""Words that fill the conversations of the suites, split into two sides that share none.

One side is for tuning a policy, the other for reporting what it does. The built-in model is trained on words of the
first side only, so a held-out word that it repeats was copied, not memorised.
"""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

Split = Literal["train", "held-out"]


def held_out(word: str) -> bool:
    """True for one word in eight, by its checksum."""
    return zlib.crc32(word.encode()) % 8 == 0


def content(name: str) -> dict[str, Any]:
    """The TOML file of that name in this folder."""
    return tomllib.loads(Path(__file__).with_name(name).read_text("utf-8"))


_LISTS: dict[str, str] = content("vocabulary.toml")
_UNSPLIT = ("day", "month", "monthday")  # too few to be split
_GENERATED: dict[str, Callable[[random.Random], str]] = {
    "code": lambda rng: str(rng.randrange(1000, 10**4)),
    "phone": lambda rng: str(rng.randrange(10**5, 10**6)),
    "number": lambda rng: str(rng.randint(2, 99)),
    "price": lambda rng: f"{rng.randint(2, 99)}.{rng.randint(1, 19) * 5:02}",
    "clock": lambda rng: f"{rng.randint(0, 23)}:{rng.randint(0, 11) * 5:02}",
}


@cache
def _side(kind: str, split: Split) -> tuple[str, ...]:
    is_held_out = split == "held-out"
    return tuple(word for word in _LISTS[kind].split() if kind in _UNSPLIT or held_out(word) == is_held_out)


def draw(kind: str, rng: random.Random, split: Split) -> str:
    """A word of a kind ("name", "colour", "code", ...) from one side of the split. Raises KeyError on other kinds."""
    if kind not in _GENERATED:
        return rng.choice(_side(kind, split))
    while held_out(word := _GENERATED[kind](rng)) != (split == "held-out"):
        pass
    return word
