"""Log probabilities of an answer's tokens, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.text.token_bytes import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kvlite.engine.request import Completion

LOWEST = -9999.0  # as OpenAI writes the logarithm of 0
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, the bytes it stands for, and the natural logarithm of its probability; `top` are the likeliest there.

    The model's own probability, before temperature, penalties, biases and grammars.
    """

    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def token(self) -> str:
        """The text; of bytes that are no whole characters as OpenAI writes them, `bytes:\\xe2\\x80`."""
        try:
            return self.bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes)


def token_logprobs(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenLogprob, ...]:
    """Read the log probabilities of a completion's tokens."""
    return tuple(_read(completion, tokenizer))


def _read(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenLogprob]:
    known: dict[int, bytes] = {}

    def one(token_id: int, logprob: float, top: Sequence[tuple[int, float]] = ()) -> TokenLogprob:
        if token_id not in known:
            known[token_id] = token_bytes(tokenizer, token_id)
        value = round(logprob, _DIGITS) if math.isfinite(logprob) else LOWEST
        return TokenLogprob(known[token_id], value, tuple(one(*other) for other in top))

    for token_id, found in zip(completion.ids, completion.logprobs, strict=True):
        yield one(token_id, found.chosen, found.likeliest)
