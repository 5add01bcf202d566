"""Results as values that go into the journal and come back: answers to questions, scores of forced text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """One question: its answer, its kind, and how far back the answer was said, in turns and in tokens.

    `tokens` lie between the end of the message that said it and the end of the question, with the model's own answers.
    """

    turn: int
    right: bool
    turns: int
    tokens: int
    kind: str
    steps: int
    answer: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A conversation that was held: `tokens` were fed in all, `unreached` questions came after the model's window."""

    number: int
    tokens: int
    unreached: int
    outcomes: tuple[QuestionResult, ...]


@dataclass(slots=True)
class Span:
    """Sums over the scored tokens of a text that have more than `over` and at most `upto` tokens before them.

    `nll` is minus the log probability of the text, `full_nll` the same under the full cache, `kl` the divergence of
    the bounded cache's next-token distribution from the full cache's, all in nats; `agreed` counts equal first choices.
    """

    over: int
    upto: int
    tokens: int = 0
    nll: float = 0.0
    full_nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """A text that was fed token by token and scored (teacher forcing): `tokens` in all, and its spans."""

    number: int
    tokens: int
    spans: tuple[Span, ...]


Result = Answered | Scored
