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
from typing import Literal

Split = Literal["train", "held-out"]


def held_out(word: str) -> bool:
    """True for one word in eight, by its checksum."""
    return zlib.crc32(word.encode()) % 8 == 0


@cache
def _lists() -> dict[str, tuple[str, ...]]:
    lists = tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text("utf-8"))
    return {kind: tuple(words.split()) for kind, words in lists.items()}


@cache
def _side(kind: str, split: Split) -> tuple[str, ...]:
    words = _lists()[kind]
    return words if kind in _UNSPLIT else tuple(word for word in words if held_out(word) == (split == "held-out"))


def _digits(count: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(10 ** (count - 1), 10**count))


_GENERATED: dict[str, Callable[[random.Random], str]] = {
    "code": _digits(4),
    "phone": _digits(6),
    "number": lambda rng: str(rng.randint(2, 99)),
    "price": lambda rng: f"{rng.randint(2, 99)}.{rng.randint(1, 19) * 5:02}",
    "clock": lambda rng: f"{rng.randint(0, 23)}:{rng.randint(0, 11) * 5:02}",
}
_UNSPLIT = ("day", "month", "monthday")  # too few to be split


def draw(kind: str, rng: random.Random, split: Split) -> str:
    """A word of a kind ("name", "colour", "code", ...) from one side of the split. Raises KeyError on other kinds."""
    if kind not in _GENERATED:
        return rng.choice(_side(kind, split))
    while held_out(word := _GENERATED[kind](rng)) != (split == "held-out"):
        pass
    return word
