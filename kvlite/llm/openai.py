"""Answers as OpenAI's JSON, which `run --json` prints and a batch records. Counts come as plain values."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate

from kvlite.llm.answer import Answer
from kvlite.llm.logprobs import TokenLogprob

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
    logprobs: Json | None = None
    if answer.logprobs is not None:
        logprobs = {"content": content(answer.logprobs), "refusal": None} if is_chat else _by_token(answer.logprobs)
    return {"index": index, **said, "finish_reason": str(answer.finish_reason), "logprobs": logprobs}


def content(logprobs: Sequence[TokenLogprob]) -> list[Json]:
    """Write log probabilities token by token, as those of a chat.completion."""
    return [{**_one(each), "top_logprobs": [_one(other) for other in each.top]} for each in logprobs]


def _one(known: TokenLogprob) -> Json:
    return {"token": known.token, "logprob": known.logprob, "bytes": [*known.bytes]}


def _by_token(logprobs: Sequence[TokenLogprob]) -> Json:
    """Write log probabilities as those of a text_completion: lists, of which the likeliest hold the token that came."""
    tokens = [each.token for each in logprobs]
    tops = [{other.token: other.logprob for other in (*each.top, each)} if each.top else {} for each in logprobs]
    starts = accumulate((len(each.bytes.decode(errors="ignore")) for each in logprobs), initial=0)
    return {
        "tokens": tokens,
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": [start for start, _ in zip(starts, tokens, strict=False)],
    }


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
