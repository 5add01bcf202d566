"""Conversations to be held with a model: what the user says, what is asked back, and when an answer is right.

Pure values; knows no tokenizer, no model and no template.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Probe:
    """What a turn asks back: `values` that the answer must hold, all said last in turn `said_in`.

    `kind` is what results are sorted by: what sort of value it is, or how it has to be found. `steps` is how many
    statements have to be joined: 1 for a fact, 2 where the question names it by another fact.
    """

    values: tuple[str, ...]
    said_in: int
    kind: str
    steps: int = 1

    def is_answered_by(self, answer: str) -> bool:
        """Look for every value in `answer`, as whole words and whole numbers, in any case, order and sentence."""
        return all(_standing_alone(value).search(answer) for value in self.values)


def _standing_alone(value: str) -> re.Pattern[str]:
    """The value neither in a longer word nor in a longer number; "14th" holds 14, "14.50" does not."""
    ordinal = "(?:st|nd|rd|th)?" if value[-1].isdigit() else ""
    return re.compile(rf"(?<!\w)(?<!\d[.,:]){re.escape(value)}{ordinal}(?!\w|[.,:]\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, a right answer, and what is asked back, if anything."""

    user: str
    answer: str
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns without a system prompt, so that nothing is pinned and the policy alone decides what is kept."""

    turns: tuple[Turn, ...]

    @property
    def probes(self) -> Iterator[tuple[int, Probe]]:
        """The turns that ask something back, by number."""
        return ((number, turn.probe) for number, turn in enumerate(self.turns) if turn.probe is not None)

    def key(self) -> str:
        """A checksum of everything that is said."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def first(self, turns: int) -> Conversation:
        """The conversation cut off after so many turns."""
        return replace(self, turns=self.turns[:turns])
