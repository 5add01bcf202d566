"""Answers as OpenAI's JSON, which `run --json` prints and a batch records. Counts come as plain values."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict

from kvlite.llm.answer import Answer

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


def choice(answer: Answer, *, index: int = 0, is_chat: bool = True) -> Json:
    """Build one of the answers to a prompt; a text_completion has no place for thinking."""
    message = {"role": "assistant", "content": answer.text, "reasoning_content": answer.thinking or None}
    said: Json = {"message": message} if is_chat else {"text": answer.text}
    return {"index": index, **said, "finish_reason": str(answer.finish_reason), "logprobs": None}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Json:
    """Count the tokens of a prompt, those of it that were fed for another one, and of all the answers to it."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def counted(answer: Answer) -> Json:
    """The seed, KV counts and timing of one answer; None stands for NaN and infinity, which JSON lacks."""
    timing = asdict(answer.completion.timing).items()
    finite = {name: round(value, 6) if math.isfinite(value) else None for name, value in timing}
    return {"seed": answer.seed, "kv": asdict(answer.kv), "timing": finite}
