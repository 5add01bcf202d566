"""Answers as OpenAI's JSON, which `run --json` prints and a batch records. Counts come as plain values."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from kvlite.memory.counts import KVCounts

Json = dict[str, object]


def completion(
    answer_id: str, model: str, choices: Sequence[Json], usage: Json, kvlite: Json, *, is_chat: bool = True
) -> Json:
    """Build a chat.completion or a text_completion; `kvlite` holds the counts that OpenAI's form has no field for."""
    return {
        "id": answer_id,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
        "usage": usage,
        "kvlite": kvlite,
    }


def choice(text: str, thinking: str, finish_reason: str, *, index: int = 0, is_chat: bool = True) -> Json:
    """Build one of the answers to a prompt; a text_completion has no place for thinking."""
    message = {"role": "assistant", "content": text, "reasoning_content": thinking or None}
    said: Json = {"message": message} if is_chat else {"text": text}
    return {"index": index, **said, "finish_reason": finish_reason, "logprobs": None}


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Count the tokens of a prompt and of all the answers to it; there is no cache of prompts to take any from."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def counted(seed: int, kv: KVCounts, timing: Mapping[str, float]) -> Json:
    """The seed, KV counts and timing of one answer."""
    return {"seed": seed, "kv": kv.as_dict(), "timing": rounded(timing)}


def rounded(timing: Mapping[str, float]) -> dict[str, float | None]:
    """Round seconds to the microsecond; None stands for NaN and infinity, which JSON lacks."""
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in timing.items()}
