"""Lines of JSON become items, or say what is wrong with them."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch import codecs
from kvlite.batch.codecs import decode_line, repeated
from kvlite.batch.item import Code, Failure, Item
from kvlite.errors import KvliteError, MissingPackage, Terminated, TimeLimit

HERE = Item(4, 7, "line-7")
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def decoded(value: object, only: str = "auto") -> Item:
    return decode_line(json.dumps(value).encode(), HERE, only)


def failure(entry: Item) -> Failure:
    assert entry.failure is not None
    return entry.failure


def item(value: object) -> Item:
    entry = decoded(value)
    assert entry.failure is None
    return entry


def test_openai_chat_line() -> None:
    body = CHAT | {"model": "m", "max_tokens": 64, "temperature": 0, "seed": 1, "stop": ["\n"], "n": 3, "tools": []}
    entry = item({"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body})
    assert (entry.key, entry.form, entry.index, entry.line, entry.model) == ("r1", "openai", 4, 7, "m")
    assert entry.messages == ({"role": "user", "content": "Hi"},)
    assert (entry.max_tokens, dict(entry.sampling), entry.stop, entry.n) == (
        64,
        {"temperature": 0, "seed": 1},
        ("\n",),
        3,
    )
    assert (entry.ignored, entry.unsupported) == ((), ())


def test_openai_completion_line_is_raw() -> None:
    entry = item({"custom_id": "r2", "url": "/v1/completions", "body": {"prompt": "Once"}})
    assert (entry.prompt, entry.raw, entry.messages) == ("Once", True, None)


def test_simple_line() -> None:
    entry = item({"id": "a", "prompt": "Hi", "system": "Be brief", "max_tokens": 64, "metadata": {"row": 7}, "x": 1})
    assert (entry.key, entry.form, entry.max_tokens, entry.metadata) == ("a", "simple", 64, {"row": 7})
    assert entry.messages == ({"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"})
    assert entry.ignored == ("x",)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"continue_final_message": True, "add_generation_prompt": False}, True),
        ({"continue_final_message": True}, True),
        ({"continue_final_message": False}, False),
        ({"add_generation_prompt": False}, True),
        ({"add_generation_prompt": True}, False),
    ],
)
def test_vllms_words_say_whether_the_last_message_is_gone_on_with(
    given: dict[str, bool], expected: bool | None
) -> None:
    assert item({"body": CHAT | given}).continues is item(CHAT | given).continues is expected
    assert item(CHAT | given).ignored == ()


@pytest.mark.parametrize("value", [True, False])
def test_going_on_and_beginning_anew_exclude_each_other(value: bool) -> None:
    refused = failure(decoded(CHAT | {"continue_final_message": value, "add_generation_prompt": value}))
    assert refused.message.startswith("continue_final_message and add_generation_prompt are both ")
    assert failure(decoded(CHAT | {"continue_final_message": 1})).message == (
        "continue_final_message is the number 1; give true or false"
    )


def test_bare_string_and_simple_chat_get_the_line_as_id() -> None:
    assert (item("just this").prompt, item("just this").key) == ("just this", "line-7")
    assert item(CHAT).messages == ({"role": "user", "content": "Hi"},)


def test_max_completion_tokens_wins_and_null_means_not_given() -> None:
    entry = item(
        {"prompt": "x", "max_tokens": 5, "max_completion_tokens": 9, "temperature": None, "stop": None, "n": None}
    )
    assert (entry.max_tokens, dict(entry.sampling), entry.stop, entry.n) == (9, {}, None, 1)


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    entry = item({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]})
    assert entry.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "ab"})


def body(**changes: object) -> dict[str, Any]:
    return {"custom_id": "r", "body": CHAT | changes}


WRONG: list[tuple[object, str | None, str]] = [
    (17, None, "the number 17"),
    ([], None, "a list"),
    (None, None, "null"),
    ({}, "prompt", "nothing to answer"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": 5}, "prompt", "the number 5"),
    ({"prompt": ["a", "b"]}, "prompt", "a list"),
    ({"id": 7, "prompt": "x"}, "id", "the number 7"),
    ({"id": "", "prompt": "x"}, "id", "empty"),
    ({"custom_id": True, "prompt": "x"}, "custom_id", "a boolean"),
    ({"prompt": "x", "system": 1}, "system", "give a string"),
    ({"prompt": "x", "metadata": []}, "metadata", "give an object"),
    ({"prompt": "x", "n": 2}, "n", "OpenAI form"),
    ({"prompt": "\ud800"}, "prompt", "surrogate"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens", "at least 1"),
    ({"prompt": "x", "max_tokens": True}, "max_tokens", "a boolean"),
    ({"prompt": "x", "max_tokens": 64.0}, "max_tokens", "64.0"),
    ({"prompt": "x", "max_tokens": "64"}, "max_tokens", "a string"),
    ({"prompt": "x", "temperature": -1}, "temperature", "-1"),
    ({"prompt": "x", "temperature": 101}, "temperature", "101"),
    ({"prompt": "x", "temperature": "0"}, "temperature", "a string"),
    ({"prompt": "x", "temperature": False}, "temperature", "a boolean"),
    ({"prompt": "x", "top_p": 0}, "top_p", "top_p is 0"),
    ({"prompt": "x", "top_k": 1.5}, "top_k", "whole number"),
    ({"prompt": "x", "top_k": -1}, "top_k", "-1"),
    ({"prompt": "x", "min_p": 1}, "min_p", "min_p is 1"),
    ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"prompt": "x", "seed": -5}, "seed", "-5"),
    ({"prompt": "x", "seed": 2**64}, "seed", "2^63"),
    ({"prompt": "x", "stop": ""}, "stop", "empty"),
    ({"prompt": "x", "stop": [1]}, "stop", "the number 1"),
    ({"prompt": "x", "stop": {}}, "stop", "an object"),
    ({"messages": []}, "messages", "empty"),
    ({"messages": "Hi"}, "messages", "a string"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages", "empty"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "robot"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "text parts"),
    ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "system", "keep one"),
    ({"messages": CHAT["messages"], "prompt": "x"}, "prompt", "keep one"),
    ({"custom_id": "r", "body": []}, "body", "a list"),
    ({"custom_id": "r", "url": "/v1/completions"}, "body", "missing"),
    ({"custom_id": "r", "method": "GET", "body": CHAT}, "method", "GET"),
    ({"custom_id": "r", "url": "/v1/embeddings", "body": CHAT}, "url", "/v1/embeddings"),
    ({"custom_id": "r", "url": ["x"], "body": CHAT}, "url", "url is"),
    ({"custom_id": "r", "url": "/v1/chat/completions", "body": {"prompt": "x"}}, "messages", "missing"),
    (body(n=0), "n", "at least 1"),
    (body(n=1000), "n", "at most 128"),
    (body(model=1), "model", "give a string"),
    (body(logit_bias={"1": 101}), "logit_bias", '"1": 101; give numbers from -100 to 100'),
    (body(response_format={"type": "xml"}), "response_format", "xml"),
    (body(response_format={"type": "json_schema", "json_schema": {"schema": {"not": {}}}}), "response_format", "not"),
    (body(guided_json={}), "guided_json", "structured_outputs"),
    (body(chat_template_kwargs="x"), "chat_template_kwargs", "give an object"),
    (body(kvlite={"kv_budget": "1GB"}), "kvlite", "--kv-budget"),
]


@pytest.mark.parametrize(("value", "param", "said"), WRONG, ids=lambda value: json.dumps(value)[:60])
def test_what_cannot_be_asked_is_a_bad_line_that_says_why(value: object, param: str | None, said: str) -> None:
    entry = decoded(value)
    assert failure(entry).code is Code.INVALID
    assert failure(entry).param == param
    assert said in failure(entry).message
    assert "\n" not in failure(entry).message


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"prompt": "x"\n', "not JSON: Expecting ',' delimiter at column 15"),
        (b"plain words", "--format text"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": "x", "temperature": Infinity}', "Infinity"),
        (b'{"prompt": "x", "metadata": {"a": 1e999}}', "1e999"),
        (b'{"prompt": "\xff"}', "0xff at offset 12"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "x", "metadata": {"a": ' + b"[" * 90 + b"]" * 90 + b"}}", "deeper than 64 levels"),
        (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "has 5000 digits, too many for a number"),
    ],
)
def test_what_is_no_json_is_a_bad_line(raw: bytes, said: str) -> None:
    entry = decode_line(raw, HERE)
    assert said in failure(entry).message
    assert entry.key == "line-7"


def test_a_bad_line_keeps_its_id_form_and_metadata() -> None:
    entry = decoded({"id": "a", "prompt": "", "metadata": {"row": 1}})
    assert failure(entry)
    assert (entry.key, entry.form, entry.metadata) == ("a", "simple", {"row": 1})
    assert decoded(body(n=0)).form == "openai"
    assert decode_line(b'{"custom_id": "r", "body": {', HERE).form == "openai"


def test_a_format_given_refuses_the_other() -> None:
    assert decoded({"prompt": "x"}, "simple").failure is None
    entry = decoded({"prompt": "x"}, "openai")
    assert "simple form" in failure(entry).message


def test_a_repeated_id_names_both_lines() -> None:
    entry = repeated(item({"id": "a", "prompt": "x"}), 3)
    assert failure(entry).code is Code.DUPLICATE
    assert "line 7" in failure(entry).message
    assert "line 3" in failure(entry).message
    assert entry.mark != item({"id": "a", "prompt": "x"}).mark


writable = st.text(st.characters(codec="utf-8"), min_size=1)


@given(key=writable, prompt=writable, stop=st.lists(writable), seed=st.integers(0, 2**63 - 1))
def test_simple_lines_come_back_as_they_were_written(key: str, prompt: str, stop: list[str], seed: int) -> None:
    entry = item({"id": key, "prompt": prompt, "stop": stop, "seed": seed})
    assert (entry.key, entry.prompt, entry.stop, entry.sampling["seed"]) == (key, prompt, tuple(stop), seed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=12,
)
names = st.sampled_from(
    ["id", "custom_id", "body", "url", "prompt", "messages", "role", "content", "stop", "n", "kvlite"]
)


@given(st.dictionaries(names, json_values | st.dictionaries(names, json_values)))
def test_no_line_raises(value: dict[str, object]) -> None:
    entry = decode_line(json.dumps(value).encode(), HERE)
    assert (entry.index, entry.line) == (4, 7)
    assert entry.key.encode()


@pytest.mark.parametrize(
    ("more", "unsupported"),
    [
        ({"tools": [{"type": "function"}]}, ("tools",)),
        ({"tools": [], "tool_choice": "auto", "stream": False, "best_of": 1}, ()),
        ({"echo": True, "prediction": {}}, ("echo", "prediction")),
        ({"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "flex"}, ()),
        ({"temprature": 0.5}, ("temprature",)),
        ({"prompt": "Ho"}, ("prompt",)),
        ({"prompt": None}, ()),
        ({"messages": [{"role": "user", "content": "Hi", "name": "Tom"}]}, ("messages.name",)),
        ({"messages": [{"role": "user", "content": "Hi", "name": None, "annotations": []}]}, ()),
    ],
)
def test_what_is_not_supported_is_told_and_what_changes_no_answer_is_not(
    more: dict[str, Any], unsupported: tuple[str, ...]
) -> None:
    asked = item({"custom_id": "r", "url": "/v1/chat/completions", "body": CHAT | more})
    assert (asked.failure, asked.unsupported, asked.ignored) == (None, unsupported, ())


def test_messages_beside_the_prompt_of_a_completion_are_not_dropped_silently() -> None:
    asked = item({"custom_id": "r", "url": "/v1/completions", "body": {"prompt": "x", **CHAT}})
    assert (asked.failure, asked.unsupported) == (None, ("messages",))


@pytest.mark.parametrize(
    ("more", "unsupported"),
    [
        ({"chat_template_kwargs": {"a": 1}}, ("chat_template_kwargs",)),
        ({"continue_final_message": True}, ("continue_final_message",)),
        ({"add_generation_prompt": True}, ("add_generation_prompt",)),
        ({"chat_template_kwargs": {}, "continue_final_message": False, "add_generation_prompt": None}, ()),
    ],
)
def test_a_completion_has_no_use_for_what_is_said_to_a_template(
    more: dict[str, Any], unsupported: tuple[str, ...]
) -> None:
    asked = item({"custom_id": "r", "url": "/v1/completions", "body": {"prompt": "x", **more}})
    assert (asked.failure, asked.unsupported) == (None, unsupported)


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": None}),
        ({"logprobs": None, "min_tokens": 0}, {"min_tokens": 0}),
        ({"min_tokens": 7}, {"min_tokens": 7}),
    ],
)
def test_log_probabilities_and_the_least_tokens(more: dict[str, Any], settings: dict[str, Any]) -> None:
    assert item({"prompt": "Hi"} | more).settings == settings


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": 3, "top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": True}, "min_tokens"),
    ],
)
def test_log_probabilities_that_cannot_be_are_refused_by_name(more: dict[str, Any], param: str) -> None:
    failure = decoded({"prompt": "Hi"} | more).failure
    assert failure is not None and failure.param == param


def test_a_simple_line_may_have_columns_of_its_own_but_not_ask_for_what_is_not_there() -> None:
    asked = item({"prompt": "Hi", "category": "x", "tools": [{}], "user": "u"})
    assert (asked.unsupported, asked.ignored) == (("tools",), ("category",))


def test_biases_and_penalties() -> None:
    asked = item({"prompt": "Hi", "logit_bias": {"5": -100, "7": 1.5}, "presence_penalty": 1, "frequency_penalty": -2})
    assert dict(asked.sampling) == {
        "logit_bias": ((5, -100), (7, 1.5)),
        "presence_penalty": 1,
        "frequency_penalty": -2,
    }


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"logit_bias": {"a": 1}}, "logit_bias has"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias has"),
        ({"logit_bias": {"5": True}}, "logit_bias has"),
        ({"logit_bias": {"5": 101}}, "from -100 to 100"),
        ({"logit_bias": [5]}, "logit_bias is a list"),
        ({"presence_penalty": 3}, "presence_penalty is 3"),
        ({"top_k": 10**400}, "below 2^31"),
        ({"chat_template_kwargs": {"a": reduce(lambda inner, _: [inner], range(100), [])}}, "nested deeper than 64"),
    ],
)
def test_biases_and_penalties_that_cannot_be(more: dict[str, Any], says: str) -> None:
    failure = decoded({"prompt": "Hi", **more}).failure
    assert failure is not None and says in failure.message and failure.param in more


def test_what_is_nested_too_deeply_to_be_shown_is_refused() -> None:
    line = b'{"prompt": "x", "logit_bias": {"1": ' + b"[" * 900 + b"]" * 900 + b"}}"
    failure = decode_line(line, Item(0, 1, "line-1")).failure
    assert failure is not None and "logit_bias" in failure.message


@pytest.mark.parametrize("error", [OverflowError("int too large"), RecursionError("too deep"), ValueError("a\nb")])
def test_an_error_that_nobody_foresaw_is_a_failure_of_its_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(codecs, "decode_simple", fails)
    item = decode_line(b'{"id": "mine", "prompt": "x"}', HERE)
    assert item.key == "mine" and item.failure is not None
    assert item.failure.code is Code.INTERNAL
    assert type(error).__name__ in item.failure.message and "\n" not in item.failure.message


@pytest.mark.parametrize("error", [TimeLimit("over"), Terminated("asked to end"), MissingPackage("x")])
def test_what_is_not_the_fault_of_a_line_ends_the_batch(monkeypatch: pytest.MonkeyPatch, error: KvliteError) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(codecs, "decode_simple", fails)
    with pytest.raises(type(error)):
        decode_line(b'"x"', HERE)
