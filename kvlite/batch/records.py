"""Write outcomes as lines of the output file, and read back from them what the journal needs."""

from __future__ import annotations

import json
import uuid

from kvlite.batch.item import Code, Form, Outcome, digest, duplicate_mark
from kvlite.llm import openai

_TEXT_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})


def record_line(outcome: Outcome, form: Form, model: str) -> str:
    """Write the outcome as one line without its newline, in `form`; `model` is the name and revision that answered."""
    if form == "text":
        return outcome.choices[0].text.translate(_TEXT_ESCAPES) if outcome.failure is None else ""
    record = _openai(outcome, model) if form == "openai" else _simple(outcome)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # metadata may hold half a surrogate pair; escaped, it is JSON again
        return json.dumps(record, allow_nan=False)
    return line


def _simple(outcome: Outcome) -> dict[str, object]:
    item = outcome.item
    record: dict[str, object] = {"id": item.key, "index": item.index}
    record |= dict.fromkeys(("text", "finish_reason", "usage", "kv", "timing"))
    if outcome.choices:
        choice = outcome.choices[0]
        counted = openai.counted(choice)
        record |= {"text": choice.text, "finish_reason": choice.finish_reason.value, "usage": _usage(outcome)}
        record |= {"kv": counted["kv"], "timing": counted["timing"]}
        record |= {"reasoning_content": choice.thinking} if choice.thinking else {}
        record |= {"logprobs": openai.content(choice.logprobs)} if choice.logprobs is not None else {}
        record |= {"seed": choice.seed, "attempt": outcome.attempt, "deduped_from": outcome.deduped_from}
    if item.metadata is not None:
        record["metadata"] = item.metadata
    return {**record, "error": _error(outcome)}


def _openai(outcome: Outcome, model: str) -> dict[str, object]:
    failure = outcome.failure
    record: dict[str, object] = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": outcome.item.key}
    if failure is not None and not failure.code.is_bad_request:
        return {**record, "response": None, "error": _error(outcome)}
    body = {"error": _error(outcome)} if failure is not None else _body(outcome, model)
    status = 200 if failure is None else 400
    response = {"status_code": status, "request_id": str(uuid.uuid4()), "body": body}
    return {**record, "response": response, "error": None}


def _body(outcome: Outcome, model: str) -> dict[str, object]:
    is_chat = not outcome.item.raw
    of_all = {
        "index": outcome.item.index,
        **openai.counted(outcome.choices[0]),
        "attempt": outcome.attempt,
        "deduped_from": outcome.deduped_from,
    }
    own = len(outcome.choices) > 1  # the counts of the body are those of the first choice only
    choices = [
        openai.choice(choice, index=index, is_chat=is_chat) | ({"kvlite": openai.counted(choice)} if own else {})
        for index, choice in enumerate(outcome.choices)
    ]
    answer_id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
    return openai.completion(answer_id, model, choices, _usage(outcome), of_all, is_chat=is_chat)


def _usage(outcome: Outcome) -> dict[str, object]:
    cached_tokens = outcome.choices[0].completion.cached_tokens if outcome.choices else 0
    return openai.usage(outcome.prompt_tokens, outcome.completion_tokens, cached_tokens)


def _error(outcome: Outcome) -> dict[str, object] | None:
    failure = outcome.failure
    if failure is None:
        return None
    error: dict[str, object] = {"code": failure.code.value, "message": failure.message}
    if failure.code.is_bad_request:
        error |= {"type": "invalid_request_error", "param": failure.param}
    return {**error, "line": outcome.item.line}


def read_record(line: bytes) -> tuple[bytes, bool] | None:
    """Read the mark of the record on a line of an output file, and whether it is a failure; None of no record."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    match record:
        case {"custom_id": str(key), "response": {"body": {"error": error}}}:
            pass
        case {"custom_id": str(key), "response": _}:
            error = record.get("error")
        case {"id": str(key), "index": _, "error": error}:
            pass
        case _:
            return None
    if isinstance(error, dict) and error.get("code") == Code.DUPLICATE:
        return duplicate_mark(key, error.get("line", 0)), True
    return digest(key), error is not None
