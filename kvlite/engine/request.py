"""Requests to the engine, and its tokens and completions: ids, never text. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from kvlite.errors import KvliteError, UsageError
from kvlite.memory.counts import KVCounts


class FinishReason(StrEnum):
    """The reason an answer ended, in OpenAI's words plus `cancelled`."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings for drawing the next token; `temperature == 0` is greedy and exact.

    `top_k == 0`, `top_p == 1` and `min_p == 0` switch the filters off. The presence penalty is subtracted from the
    logits of ids that the answer holds, the frequency penalty once for each time; `logit_bias` is added to logits by
    id. Raises UsageError on values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0.0 <= self.temperature <= 100.0, "a number from 0 (greedy) to 100"),
            "top_k": (0 <= self.top_k < 2**31, "0 (off) or a count of tokens, below 2^31"),
            "top_p": (0.0 < self.top_p <= 1.0, "a share above 0 and up to 1 (off)"),
            "min_p": (0.0 <= self.min_p < 1.0, "a share from 0 (off) to below 1"),
            "repetition_penalty": (0.0 < self.repetition_penalty <= 100.0, "above 0, 1 is off"),
            "presence_penalty": (-2.0 <= self.presence_penalty <= 2.0, "a number from -2 to 2, 0 is off"),
            "frequency_penalty": (-2.0 <= self.frequency_penalty <= 2.0, "a number from -2 to 2, 0 is off"),
            "logit_bias": (all(-100 <= bias <= 100 for _, bias in self.logit_bias), "numbers from -100 to 100 by id"),
            "seed": (0 <= self.seed < 2**63, "a whole number from 0 to 2^63 - 1"),
        }
        for name, (holds, expected) in checks.items():  # NaN fails every comparison, so it is refused too
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}; give {expected}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def shifts(self) -> bool:
        """True where logits of some ids are raised or lowered by a fixed amount."""
        return bool(self.logit_bias or self.presence_penalty or self.frequency_penalty)


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Tokens that an answer must not hold, at all, at its beginning or after others; all switched off as they stand.

    `bad_words_ids` are sequences whose last id must not follow the others, `no_repeat_ngram_size` the length of
    sequences that must not come twice in a conversation; no stop id comes before `min_new_tokens`.
    """

    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0


NO_RULES = TokenRules()
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of probabilities by the model's logits as they are, of a token that came and of the likeliest.

    Temperature, filters, penalties, biases, rules and masks change none of them. `likeliest` holds (id, value), the
    highest first.
    """

    chosen: float
    likeliest: tuple[tuple[int, float], ...] = ()


class Guide(Protocol):
    """The tokens that may come next in one answer, of which it is told each."""

    @property
    def is_over(self) -> bool:
        """True where no token may come any more, so that the answer ends."""

    @property
    def error(self) -> KvliteError | None:
        """The reason why it can no longer tell what may come; the answer fails then."""

    def mask(self) -> bytes | None:
        """A bit for each id, that of id 0 the lowest of the first byte; None where every id may come."""

    def accept(self, token: int) -> None:
        """Take the token that came."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate: feed `ids`, then decode until a stop id, `max_tokens` or a cancel.

    `row` continues that row's conversation; None takes a free row and starts it empty. `pins` are spans of `ids`,
    as (start, end) offsets into them, that are never evicted. `prefixes` are lengths of beginnings of `ids` that other
    requests have too: they are fed once and copied, where a row without a conversation is taken. `guide` makes what
    says, at each step, which tokens may come. With `logprobs` each token's is kept, and those of as many of the
    likeliest.
    """

    id: str
    ids: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    pins: tuple[tuple[int, int], ...] = ()
    row: int | None = None
    rules: TokenRules = NO_RULES
    prefixes: tuple[int, ...] = ()
    guide: Callable[[], Guide] | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            raise UsageError(f"request {self.id}: the prompt is empty; give at least one token")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"request {self.id}: max_tokens is {self.max_tokens}; give at least 1")


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; a stop id is not reported as a token but ends the answer."""

    request_id: str
    index: int
    id: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from start to first token and from start to end; and decoding speed."""

    ttft_s: float
    total_s: float
    tok_s: float


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request, always its last event.

    `cut_short` says why there was no room for another token, None where the answer ended for any other reason. Of the
    prompt's tokens `cached_tokens` were fed for another request. `logprobs` are those of the `ids`, where they were
    asked for. Of `drafted` tokens so many were right: `accepted`.
    """

    request_id: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    evicted: int
    kv: KVCounts
    timing: Timing
    error: Exception | None = None
    cut_short: str | None = None
    cached_tokens: int = 0
    logprobs: tuple[Logprobs, ...] = ()
    drafted: int = 0
    accepted: int = 0
