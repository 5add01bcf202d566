"""Outcomes become lines, and the journal reads back what it needs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch.item import Code, Failure, Form, Item, Outcome, digest
from kvlite.batch.records import read_record, record_line
from kvlite.engine.request import Completion, FinishReason, Timing
from kvlite.llm.answer import Answer
from kvlite.memory.counts import KVCounts

COUNTS = KVCounts(2000, 1900, 100, 200, 56, 50, 6, "heavy-hitter", "float16")
COMPLETION = Completion("3.0", (1,) * 31, FinishReason.STOP, 25, 6, COUNTS, Timing(0.21, 0.97, float("nan")))
CHOICE = Answer("Hel\nlo", "", FinishReason.STOP, 7, True, False, COMPLETION)
SIMPLE = Item(3, 4, "a", prompt="x", metadata={"row": 7})
CHAT = Item(0, 1, "r1", "openai", messages=({"role": "user", "content": "Hi"},))
ANSWERED = Outcome(SIMPLE, (CHOICE,), 25)


def written(outcome: Outcome, form: Form) -> dict[str, Any]:
    value = json.loads(record_line(outcome, form, "org/m@abc"))
    assert isinstance(value, dict)
    return value


def test_simple_form() -> None:
    record = written(ANSWERED, "simple")
    usage = {"prompt_tokens": 25, "completion_tokens": 31, "total_tokens": 56}
    assert record["usage"].items() >= usage.items()
    assert record["kv"] == asdict(COUNTS)
    assert record["timing"] == {"ttft_s": 0.21, "total_s": 0.97, "tok_s": None}
    facts = {"id": "a", "index": 3, "text": "Hel\nlo", "finish_reason": "stop", "metadata": {"row": 7}, "error": None}
    assert record.items() >= facts.items()


def test_openai_chat_form() -> None:
    record = written(replace(ANSWERED, item=CHAT), "openai")
    assert (record["custom_id"], record["error"], record["id"][:10]) == ("r1", None, "batch_req_")
    response = record["response"]
    assert response["status_code"] == 200
    body = response["body"]
    assert (body["object"], body["model"], body["id"][:9]) == ("chat.completion", "org/m@abc", "chatcmpl-")
    message = {"role": "assistant", "content": "Hel\nlo", "reasoning_content": None}
    assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    block = {"index": 0, "seed": 7, "kv": asdict(COUNTS), "attempt": 1, "deduped_from": None}
    assert body["kvlite"].items() >= block.items()


def test_openai_completion_form() -> None:
    raw = replace(CHAT, messages=None, prompt="Once", raw=True)
    body = written(replace(ANSWERED, item=raw), "openai")["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hel\nlo", "finish_reason": "stop", "logprobs": None}]


def test_several_choices_each_have_their_own_counts() -> None:
    second = replace(CHOICE, seed=8, completion=replace(COMPLETION, kv=replace(COUNTS, tokens_evicted=9)))
    body = written(Outcome(CHAT, (CHOICE, second), 25), "openai")["response"]["body"]
    assert [choice["kvlite"]["seed"] for choice in body["choices"]] == [7, 8]
    assert body["choices"][1]["kvlite"]["kv"]["tokens_evicted"] == 9
    assert body["usage"]["completion_tokens"] == 62


def test_thinking_stays_apart() -> None:
    thought = replace(ANSWERED, choices=(replace(CHOICE, thinking="hm"),))
    assert written(thought, "simple")["reasoning_content"] == "hm"
    body = written(thought, "openai")["response"]["body"]
    assert body["choices"][0]["message"]["reasoning_content"] == "hm"


@pytest.mark.parametrize("code", [code for code in Code if code.is_bad_request])
def test_a_bad_request_is_a_400_in_the_openai_form(code: Code) -> None:
    failed = Outcome(Item(0, 5, "r1", "openai", Failure(code, "no", "n")), failure=Failure(code, "no", "n"))
    record = written(failed, "openai")
    assert (record["error"], record["response"]["status_code"]) == (None, 400)
    error = {"message": "no", "type": "invalid_request_error", "param": "n", "code": code.value, "line": 5}
    assert record["response"]["body"] == {"error": error}


@pytest.mark.parametrize("code", [code for code in Code if not code.is_bad_request])
def test_a_failure_of_the_engine_has_no_response(code: Code) -> None:
    record = written(Outcome(CHAT, failure=Failure(code, "no")), "openai")
    assert (record["response"], record["error"]) == (None, {"code": code.value, "message": "no", "line": 1})


def test_a_failed_simple_record_keeps_what_was_answered() -> None:
    record = written(replace(ANSWERED, failure=Failure(Code.TIMEOUT, "late")), "simple")
    assert (record["text"], record["error"]["code"]) == ("Hel\nlo", "timeout")
    record = written(Outcome(SIMPLE, failure=Failure(Code.INVALID, "no")), "simple")
    assert (record["text"], record["usage"], record["kv"]) == (None, None, None)


def test_text_form_is_one_line() -> None:
    answer = replace(ANSWERED, choices=(replace(CHOICE, text="a\\b\r\nc"),))
    assert record_line(answer, "text", "m") == "a\\\\b\\r\\nc"
    assert record_line(Outcome(SIMPLE, failure=Failure(Code.INVALID, "no")), "text", "m") == ""


def test_metadata_that_is_no_unicode_is_still_json() -> None:
    odd = Outcome(replace(SIMPLE, metadata={"a": "\ud800"}), (CHOICE,), 25)
    line = record_line(odd, "simple", "m")
    assert json.loads(line.encode())["metadata"] == {"a": "\ud800"}


@given(
    key=st.text(st.characters(codec="utf-8"), min_size=1),
    answer=st.text(),
    form=st.sampled_from(["openai", "simple"]),
    code=st.sampled_from(Code) | st.none(),
)
def test_the_journal_reads_back_every_record(key: str, answer: str, form: Form, code: Code | None) -> None:
    failure = None if code is None else Failure(code, "no")
    item = replace(SIMPLE, key=key, failure=failure)
    choices = (replace(CHOICE, text=answer.encode("utf-8", "replace").decode()),) if failure is None else ()
    line = record_line(Outcome(item, choices, 1, failure), form, "m")
    assert "\n" not in line
    recorded = read_record(line.encode())
    assert recorded is not None
    mark, is_failed = recorded
    assert (mark, is_failed) == (item.mark, failure is not None)
    assert (mark == digest(key)) is (code is not Code.DUPLICATE)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"17", b"{}", b'{"id":"a"}', b'{"id":7,"index":0,"error":null}', b"\xff", b'{"response":{}}'],
)
def test_other_lines_are_no_records(line: bytes) -> None:
    assert read_record(line) is None
