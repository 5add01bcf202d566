"""A line of the input, to answer or with the reason why it cannot be, and its outcome; knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal

from kvlite.errors import KvliteError, UsageError
from kvlite.llm.answer import Answer

Json = Mapping[str, object]

Form = Literal["openai", "simple", "text"]
"""The shape of a line, in and out."""


class Code(StrEnum):
    """The kind of a failure, in words that scripts rely on."""

    INVALID = "invalid_request"
    DUPLICATE = "duplicate_id"
    MODEL_MISMATCH = "model_mismatch"
    CONTEXT_LENGTH = "context_length_exceeded"
    KV_BUDGET = "kv_budget_exceeded"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    INTERNAL = "internal_error"

    @property
    def is_bad_request(self) -> bool:
        """True where the line itself is at fault and would fail again on every run."""
        return self in (Code.INVALID, Code.DUPLICATE, Code.MODEL_MISMATCH, Code.CONTEXT_LENGTH, Code.KV_BUDGET)


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a line has no answer; `param` names the key at fault."""

    code: Code
    message: str
    param: str | None = None


class LineError(ValueError):
    """An error of one line, which becomes a record with this failure; the batch goes on."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(Code.INVALID, message, param)


def failure_of(error: Exception) -> Failure:
    """Make the failure of a line at which `error` was raised; one that nobody foresaw is an internal error.

    Raises it again where it is not the line's, such as the end of the time, or a package that is missing.
    """
    match error:
        case LineError():
            return error.failure
        case UsageError():
            return Failure(Code.INVALID, str(error))
        case KvliteError():
            raise error
        case _:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            return Failure(Code.INTERNAL, f"kvlite failed at this line, please report it ({why[:200]})")


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the input: a prompt or a conversation with the settings that the line gives, or a `failure`.

    `index` counts records from 0, `line` lines from 1; `key` is the line's own id, else `line-<n>`. Without a `failure`
    exactly one of `prompt` and `messages` is set. `raw` asks for no chat template; `ignored` are keys without effect,
    `unsupported` those that ask for what is not there.
    `continues` says whether the last message is gone on with, None leaves that to its role. `settings` are fields of
    AnswerSettings that the line gives, `sampling` those of Sampling.
    """

    index: int
    line: int
    key: str
    form: Form = "simple"
    failure: Failure | None = None
    prompt: str | None = None
    messages: tuple[Json, ...] | None = None
    raw: bool = False
    continues: bool | None = None
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    n: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    template_kwargs: Json = field(default_factory=dict)
    metadata: Json | None = None
    ignored: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()

    @property
    def mark(self) -> bytes:
        """The digest by which the journal knows this line; a duplicate differs from the line whose id it repeats."""
        if self.failure is not None and self.failure.code is Code.DUPLICATE:
            return duplicate_mark(self.key, self.line)
        return digest(self.key)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an item: all of its choices and no failure, or a failure with the choices that had tokens by then."""

    item: Item
    choices: tuple[Answer, ...] = ()
    prompt_tokens: int = 0
    failure: Failure | None = None
    attempt: int = 1
    deduped_from: str | None = None

    @property
    def completion_tokens(self) -> int:
        return sum(choice.completion_tokens for choice in self.choices)


def digest(key: str) -> bytes:
    """Hash an id to 16 bytes, so that a million ids fit in memory."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def duplicate_mark(key: str, line: int) -> bytes:
    """Make the mark of a line that repeats the id `key`."""
    return digest(f"{key}\0line {line}")
