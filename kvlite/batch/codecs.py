"""Decode JSON lines to items: OpenAI batch lines, simple objects and bare strings, told apart line by line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvlite.batch.answer_format import answer_format
from kvlite.batch.item import Code, Failure, Form, Item, Json, LineError, failure_of
from kvlite.batch.values import count, given, kind, parse_json, shallow, shown, string, text
from kvlite.engine.request import MOST_LOGPROBS, Sampling
from kvlite.errors import UsageError
from kvlite.text.messages import checked

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"
MAX_CHOICES = 128

_KINDS_OF_NUMBERS = {
    "temperature": (int, float), "top_p": (int, float), "top_k": (int,), "min_p": (int, float),
    "repetition_penalty": (int, float), "presence_penalty": (int, float), "frequency_penalty": (int, float),
    "seed": (int,),
}  # fmt: skip
_KNOWN_IN_BODY = frozenset(
    {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stop", "n", "response_format",
     "structured_outputs", "chat_template_kwargs", "continue_final_message", "add_generation_prompt", "logit_bias",
     "logprobs", "top_logprobs", "min_tokens", *_KINDS_OF_NUMBERS}
)  # fmt: skip
_KNOWN_IN_MESSAGE = {"role", "content"}
_FOR_TEMPLATES = ("chat_template_kwargs", "continue_final_message", "add_generation_prompt")
_MOST_DIGITS = 9  # of a token id
_OFF: tuple[object, ...] = (None, False, [], {})
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": _OFF, "functions": _OFF, "tool_choice": (None, "none", "auto"), "function_call": (None, "none", "auto"),
    "echo": (None, False), "best_of": (None, 1), "suffix": (None, ""), "stream": (None, False),
    "modalities": (None, ["text"]), "audio": (None,), "prediction": (None,), "web_search_options": (None,),
    "reasoning_effort": (None,), "verbosity": (None,), "moderation": (None,),
}  # fmt: skip
"""Keys that ask for more than there is, with the values that do not."""
_WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                   "prompt_cache_retention", "prompt_cache_options", "parallel_tool_calls",
                   "stream_options"}  # fmt: skip
"""Keys of OpenAI's that change no answer."""
SETTINGS = (_KNOWN_IN_BODY | {"system"}) - {"prompt"}
"""Keys of a simple line that say what is asked and how; columns of a table that have these names are the same."""
_KNOWN_IN_SIMPLE = _KNOWN_IN_BODY | {"id", "custom_id", "system", "metadata"}


def decode_line(raw: bytes, item: Item, only: str = "auto") -> Item:
    """Complete `item` by one line of JSON, or by the reason why it cannot be asked; `only` names a form if not auto.

    A line that cannot be read has the form that `item` has, unless it looks like another.
    """
    if only == "openai" or b'"body"' in raw:
        item = replace(item, form="openai")
    try:
        value = parse_json(raw)
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, dict):
            found = "null" if value is None else kind(value)
            raise LineError(f"the line is {found}; give an object or a string")
        asks = "prompt" in value or "messages" in value
        form: Form = "openai" if "body" in value or ("url" in value and not asks) else "simple"
        item = replace(item, form=form)
        if only not in ("auto", form):
            raise LineError(f"the line has the {form} form; --format {only} takes no other")
        item = replace(item, key=_key(value, default=item.key))
        if form == "openai":
            return decode_openai(value, item)
        item = replace(item, metadata=shallow(given(value, "metadata", dict), "metadata"))
        return decode_simple(value, item)
    except Exception as error:  # no line ends a batch
        return replace(item, failure=failure_of(error))


def decode_simple(value: Json, item: Item) -> Item:
    """Complete `item` by the keys of a simple object. Raises LineError."""
    item = _with_settings(item, value, _KNOWN_IN_SIMPLE)
    if item.n != 1:
        raise LineError(f"n is {item.n}; a simple line has one answer, use the OpenAI form for more", "n")
    if value.get("messages") is None:
        item = replace(item, prompt=_prompt(value))
    elif value.get("prompt") not in (None, ""):
        raise LineError("prompt and messages are both given; keep one", "prompt")
    else:
        item = replace(item, messages=_messages(value["messages"]))
    system = text(value, "system")
    if system is None:
        return item
    messages = item.messages or ({"role": "user", "content": item.prompt},)
    if messages[0]["role"] == "system":
        raise LineError("system and a system message are both given; keep one", "system")
    return replace(item, prompt=None, messages=({"role": "system", "content": system}, *messages))


def decode_openai(value: Json, item: Item) -> Item:
    """Complete `item` by the keys of a line of OpenAI's batch API. Raises LineError."""
    method = value.get("method", "POST")
    if method != "POST":
        raise LineError(f"method is {shown(method)}; give POST", "method")
    body = given(value, "body", dict)
    if body is None:
        raise LineError("body is missing; give an object", "body")
    url = value.get("url", CHAT_URL if "messages" in body else COMPLETIONS_URL)
    if url not in (CHAT_URL, COMPLETIONS_URL):
        raise LineError(f"url is {shown(url)}; give {CHAT_URL} or {COMPLETIONS_URL}", "url")
    others = ("prompt",) if url == CHAT_URL else ("messages", *_FOR_TEMPLATES)
    item = _with_settings(item, body, _KNOWN_IN_BODY.difference(name for name in others if body.get(name) not in _OFF))
    if url == CHAT_URL:
        return replace(item, messages=_messages(body.get("messages")))
    return replace(item, prompt=_prompt(body), raw=True)


def repeated(item: Item, first_line: int | None) -> Item:
    """Refuse `item` because line `first_line`, or one before it that is not remembered, has its id already."""
    first = "an earlier line" if first_line is None else f"line {first_line}"
    message = f"line {item.line} has the id {shown(item.key)} of {first}; ids must differ"
    return replace(item, failure=Failure(Code.DUPLICATE, message, "custom_id" if item.form == "openai" else "id"))


def _with_settings(item: Item, body: Json, known: frozenset[str]) -> Item:
    if body.get("kvlite") is not None:
        raise LineError(
            "kvlite is no key of a line: one cache serves all lines; give --kv-budget and the like", "kvlite"
        )
    n = count(body, "n") or 1
    if n > MAX_CHOICES:
        raise LineError(f"n is {shown(n)}; give at most {MAX_CHOICES}", "n")
    return replace(
        item,
        model=text(body, "model"),
        sampling=_sampling(body) | _logit_bias(body),
        max_tokens=count(body, "max_completion_tokens") or count(body, "max_tokens"),
        stop=_stop(body.get("stop")),
        n=n,
        settings={**answer_format(body), **_logprobs(body), **_min_tokens(body)},
        unsupported=_unsupported(body, known, is_strict=item.form == "openai"),
        continues=_continues(body),
        template_kwargs=shallow(given(body, "chat_template_kwargs", dict), "chat_template_kwargs") or {},
        ignored=() if item.form == "openai" else _unknown(body, known),
    )


def _continues(body: Json) -> bool | None:
    """Read vLLM's words for an answer that goes on with the last message, which is the default where that is one."""
    continues, opens = (given(body, name, bool) for name in ("continue_final_message", "add_generation_prompt"))
    if continues is not None and continues is opens:
        raise LineError(f"continue_final_message and add_generation_prompt are both {shown(continues)}; keep one")
    return not opens if continues is None and opens is not None else continues


def _unsupported(body: Json, known: frozenset[str], *, is_strict: bool) -> tuple[str, ...]:
    """The keys that ask for what is not there; of OpenAI's form also those that nobody knows."""
    asked = tuple(name for name, off in _UNSUPPORTED.items() if name in body and body[name] not in off)
    return (*asked, *_in_messages(body), *_unknown(body, known)) if is_strict else asked


def _in_messages(body: Json) -> Iterator[str]:
    """Name what the messages hold beside role and content, such as `messages.name`, each once."""
    messages = body.get("messages")
    found = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    names = dict.fromkeys(name for message in found for name in message if message[name] not in _OFF)
    yield from (f"messages.{name}" for name in names if name not in _KNOWN_IN_MESSAGE)


def _unknown(body: Json, known: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in body if name not in known | _WITHOUT_EFFECT | _UNSUPPORTED.keys())


def _logit_bias(body: Json) -> dict[str, Any]:
    given_bias = given(body, "logit_bias", dict)
    if not given_bias:
        return {}
    biases = []
    for token, bias in given_bias.items():
        is_id = token.isascii() and token.isdigit() and len(token) <= _MOST_DIGITS
        if not is_id or type(bias) not in (int, float):
            raise LineError(f"logit_bias has {shown(token)}: {shown(bias)}; give numbers by token id", "logit_bias")
        try:
            Sampling(logit_bias=((int(token), bias),))
        except UsageError:
            raise LineError(
                f"logit_bias has {shown(token)}: {shown(bias)}; give numbers from -100 to 100", "logit_bias"
            ) from None
        biases.append((int(token), bias))
    return {"logit_bias": tuple(biases)}


def _logprobs(body: Json) -> dict[str, int | None]:
    """Read what either API of OpenAI says: true, with top_logprobs beside it, or the number of likely tokens."""
    asked, top = given(body, "logprobs", bool, int), given(body, "top_logprobs", int)
    if top is not None and top != 0 and asked is not True:
        raise LineError("top_logprobs needs logprobs to be true", "top_logprobs")
    if asked is None:
        return {}
    name, most = ("top_logprobs", top or 0) if asked is True else ("logprobs", asked)
    if not 0 <= most <= MOST_LOGPROBS:
        raise LineError(f"{name} is {shown(most)}; give a number from 0 to {MOST_LOGPROBS}", name)
    return {"logprobs": None if asked is False else most}


def _min_tokens(body: Json) -> dict[str, int]:
    least = given(body, "min_tokens", int)
    if least is not None and least < 0:
        raise LineError(f"min_tokens is {shown(least)}; give at least 0", "min_tokens")
    return {} if least is None else {"min_tokens": least}


def _sampling(body: Json) -> dict[str, Any]:
    sampling: dict[str, Any] = {}
    for name, kinds in _KINDS_OF_NUMBERS.items():
        value = given(body, name, *kinds)
        if value is None:
            continue
        try:
            Sampling(**{name: value})  # each range is written there, once
        except UsageError as error:
            raise LineError(str(error), name) from None
        sampling[name] = value
    return sampling


def _prompt(body: Json) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:  # OpenAI takes several, each with answers of its own
        prompt = prompt[0]
    prompt = None if prompt is None else string(prompt, "prompt")
    if not prompt:
        missing = "there is nothing to answer; give prompt or messages"
        raise LineError(missing if prompt is None else "the prompt is empty; give some text", "prompt")
    return prompt


def _messages(value: object) -> tuple[Json, ...]:
    if not isinstance(value, list) or not value:
        given = "empty" if value == [] else kind(value)
        raise LineError(f"messages is {given}; give a list of at least one message", "messages")
    try:
        messages = checked(value)
    except UsageError as error:
        raise LineError(str(error), "messages") from None
    if not any(message.content for message in messages):
        raise LineError("the messages are empty; give some text", "messages")
    return tuple({"role": message.role, "content": string(message.content, "messages")} for message in messages)


def _stop(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise LineError(f"stop is {kind(value)}; give a string or a list of strings", "stop")
    if "" in stops:
        raise LineError("stop holds an empty string; give some text", "stop")
    return tuple(string(stop, "stop") for stop in stops)


def _key(value: Json, default: str) -> str:
    name = "custom_id" if value.get("custom_id") is not None else "id"
    key = text(value, name)
    if key == "":
        raise LineError(f"{name} is empty; give a string or leave it out", name)
    return default if key is None else key
