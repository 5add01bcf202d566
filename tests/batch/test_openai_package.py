"""Records are what the official package of OpenAI reads; a file made for its batch API runs as it is."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from kvlite.batch.codecs import CHAT_URL, COMPLETIONS_URL, decode_line
from kvlite.batch.item import Item
from kvlite.cli import main

types = pytest.importorskip("openai.types", reason="the package openai is not here")
PERSON = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": PERSON}}
HELLO = [{"role": "user", "content": "Hello!"}]
LINES = [
    ("chat", "/v1/chat/completions", {"messages": HELLO, "n": 2, "temperature": 1}),
    ("odds", "/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 4}),
    ("odds of text", "/v1/completions", {"prompt": "Hello", "logprobs": 2, "max_tokens": 4}),
    ("form", "/v1/chat/completions", {"messages": [{"role": "user", "content": "A number"}], "response_format": FORM}),
    ("text", "/v1/completions", {"prompt": "Hello", "stop": ["."], "user": "u"}),
    ("bad", "/v1/chat/completions", {"messages": HELLO, "tools": [{}]}),
]
WORTH_ASKING: dict[str, Any] = {
    "model": "m", "max_tokens": 3, "max_completion_tokens": 3, "temperature": 0.5, "top_p": 0.5, "seed": 1, "n": 2,
    "presence_penalty": 1, "frequency_penalty": 1, "logit_bias": {"5": 1}, "stop": ["x"], "logprobs": True,
    "response_format": FORM,
}  # fmt: skip
NO_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
             "prompt_cache_retention", "prompt_cache_options", "parallel_tool_calls", "stream_options"}  # fmt: skip


def strictly(kind: Any, value: object) -> Any:
    """`value` as the package's own type, nothing converted."""
    return kind.model_validate_json(json.dumps(value), strict=True)


def test_a_file_for_the_batch_api_runs_and_its_records_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"custom_id": name, "method": "POST", "url": url, "body": {"model": "demo", "max_tokens": 60} | body}
        for name, url, body in LINES
    ]
    Path("in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert main(["batch", "in.jsonl", "-o", "out.jsonl", "--kv-budget", "2MB"]) == 5
    records = {one["custom_id"]: one for one in map(json.loads, Path("out.jsonl").read_text().splitlines())}
    assert all(one.keys() == {"id", "custom_id", "response", "error"} for one in records.values())
    bodies = {name: one["response"]["body"] for name, one in records.items()}
    chat, form = (strictly(types.chat.ChatCompletion, bodies[name]) for name in ("chat", "form"))
    assert len(chat.choices) == 2 and chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    assert isinstance(json.loads(form.choices[0].message.content)["n"], int)
    assert strictly(types.Completion, bodies["text"]).choices[0].finish_reason in ("stop", "length")
    odds, of_text = (
        strictly(types.chat.ChatCompletion, bodies["odds"]),
        strictly(types.Completion, bodies["odds of text"]),
    )
    content = odds.choices[0].logprobs.content
    assert len(content) == odds.usage.completion_tokens and all(len(one.top_logprobs) == 2 for one in content)
    assert (
        b"".join(map(bytes, (one.bytes for one in content))).decode().strip() == odds.choices[0].message.content.strip()
    )
    lists, text = of_text.choices[0].logprobs, of_text.choices[0].text
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset) == of_text.usage.completion_tokens
    assert "".join(lists.tokens).strip() == text.strip() and all(2 <= len(one) <= 3 for one in lists.top_logprobs)
    assert records["bad"]["response"]["status_code"] == 400 and bodies["bad"]["error"]["param"] == "tools"


def test_every_parameter_is_honoured_or_without_effect_or_makes_an_error_record() -> None:
    """Those of the package's own requests, each with a value that asks for something."""
    apis = {CHAT_URL: (types.chat.completion_create_params, {"messages": HELLO}),
            COMPLETIONS_URL: (types.completion_create_params, {"prompt": "Hi"})}  # fmt: skip
    known = WORTH_ASKING.keys() | NO_EFFECT
    for url, (params, body) in apis.items():
        for name in params.CompletionCreateParamsBase.__annotations__.keys() - body.keys():
            line = {"custom_id": "r", "url": url, "body": {**body, name: WORTH_ASKING.get(name, "something")}}
            item = decode_line(json.dumps(line).encode(), Item(0, 1, "line-1"))
            plain = decode_line(json.dumps({**line, "body": body}).encode(), Item(0, 1, "line-1"))
            if name in NO_EFFECT:
                assert item == plain, name
            elif name in WORTH_ASKING:
                assert item.failure is None and not item.unsupported and item != plain, name
            else:
                assert item.failure is not None or item.unsupported == (name,), name
        assert plain.failure is None
    assert known <= {*chain(*(params.CompletionCreateParamsBase.__annotations__ for params, _ in apis.values()))}


@pytest.mark.parametrize("prompt", [["one"], "one"])
def test_a_list_of_one_prompt_is_that_prompt(prompt: object) -> None:
    line = {"custom_id": "r", "url": COMPLETIONS_URL, "body": {"prompt": prompt}}
    assert decode_line(json.dumps(line).encode(), Item(0, 1, "line-1")).prompt == "one"
