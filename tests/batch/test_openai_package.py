"""Records are what the official package of OpenAI reads; a file made for its batch API runs as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
