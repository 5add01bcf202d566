"""One answer has one spelling in OpenAI's words, whoever writes it."""

from __future__ import annotations

import json

import pytest

from kvlite.engine.request import Completion, FinishReason, Timing
from kvlite.llm import openai
from kvlite.llm.answer import Answer
from kvlite.memory.counts import KVCounts

COUNTS = KVCounts(1000, 900, 10, 20, 5, 4, 1, "window", "float32")
COMPLETION = Completion("id", (1,), FinishReason.STOP, 1, 0, COUNTS, Timing(0.12345678, 0.5, float("inf")))
ANSWER = Answer("hi", "", FinishReason.STOP, 3, True, False, COMPLETION)


def test_usage_adds_up() -> None:
    assert openai.usage(7, 4) == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_timing_is_rounded_and_always_json() -> None:
    counted = openai.counted(ANSWER)
    assert counted["timing"] == {"ttft_s": 0.123457, "total_s": 0.5, "tok_s": None}
    assert json.loads(json.dumps(counted, allow_nan=False))["kv"]["tokens_evicted"] == 1


@pytest.mark.parametrize(("is_chat", "key", "named"), [(True, "message", "chat.completion"), (False, "text", "text_")])
def test_a_completion_says_its_kind(is_chat: bool, key: str, named: str) -> None:
    choice = openai.choice(ANSWER, index=1, is_chat=is_chat)
    body = openai.completion("id", "demo", [choice], openai.usage(1, 1), {}, is_chat=is_chat)
    assert str(body["object"]).startswith(named)
    assert key in choice and choice["index"] == 1
