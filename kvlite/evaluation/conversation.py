"""Conversations to hold with a model: messages, questions and the rule for a right answer.

Pure values; knows no tokenizer, no model and no template.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Probe:
    """A question for something said earlier: the answer must hold all `values`, which turn `said_in` said last.

    Results are grouped by `kind`: the sort of value, or the way it is found. `steps` statements have to be joined for
    the answer: 1 for a fact, 2 where the question names it by another fact.
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
    """A message of the user, a right answer, and the probe where the message asks for something said earlier."""

    user: str
    answer: str
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns without a system prompt, so that nothing is pinned and the policy alone decides what is kept."""

    turns: tuple[Turn, ...]

    @property
    def probes(self) -> list[tuple[int, Probe]]:
        """The turns that ask for something said earlier, by number."""
        return [(number, turn.probe) for number, turn in enumerate(self.turns) if turn.probe is not None]

    def key(self) -> str:
        """A checksum of everything that is said."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def first(self, turns: int) -> Conversation:
        """The conversation cut off after so many turns."""
        return replace(self, turns=self.turns[:turns])
