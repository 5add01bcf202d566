"""Write outcomes as lines of the output file, and read back from them what the journal needs."""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import asdict, dataclass

from kvlite.batch.item import Code, Form, Item, digest, duplicate_mark
from kvlite.batch.outcome import Choice, Outcome
from kvlite.text import openai

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TEXT_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})


def record_line(outcome: Outcome, form: Form, model: str) -> str:
    """Write the outcome as one line without its newline, in `form`; `model` is the name and revision that answered."""
    if form is Form.TEXT:
        return outcome.choices[0].text.translate(_TEXT_ESCAPES) if outcome.failure is None else ""
    record = _openai(outcome, model) if form is Form.OPENAI else _simple(outcome)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # metadata may hold half a surrogate pair; escaped, it is JSON again
        return json.dumps(record, allow_nan=False)
    return line


def _simple(outcome: Outcome) -> dict[str, object]:
    entry, choice = outcome.entry, outcome.choices[0] if outcome.choices else None
    record: dict[str, object] = {
        "id": entry.key,
        "index": entry.place.index,
        "text": choice.text if choice else None,
        "finish_reason": choice.finish_reason.value if choice else None,
        "usage": _usage(outcome) if choice else None,
        "kv": choice.kv.as_dict() if choice else None,
        "timing": openai.rounded(asdict(choice.timing)) if choice else None,
    }
    if choice and choice.thinking:
        record["reasoning_content"] = choice.thinking
    if choice:
        record |= {"seed": choice.seed, "attempt": outcome.attempt, "deduped_from": outcome.deduped_from}
    if entry.metadata is not None:
        record["metadata"] = entry.metadata
    return {**record, "error": _error(outcome)}


def _openai(outcome: Outcome, model: str) -> dict[str, object]:
    failure = outcome.failure
    record: dict[str, object] = {"id": f"batch_req_{_ulid()}", "custom_id": outcome.entry.key}
    if failure is not None and not failure.code.is_bad_request:
        return {**record, "response": None, "error": _error(outcome)}
    body = {"error": _error(outcome)} if failure is not None else _body(outcome, model)
    status = 200 if failure is None else 400
    response = {"status_code": status, "request_id": str(uuid.uuid4()), "body": body}
    return {**record, "response": response, "error": None}


def _body(outcome: Outcome, model: str) -> dict[str, object]:
    is_chat = not (isinstance(outcome.entry, Item) and outcome.entry.raw)
    of_all = {
        "index": outcome.entry.place.index,
        **_counted(outcome.choices[0]),
        "attempt": outcome.attempt,
        "deduped_from": outcome.deduped_from,
    }
    choices = [
        openai.choice(choice.text, choice.thinking, choice.finish_reason.value, index=index, is_chat=is_chat)
        | ({"kvlite": _counted(choice)} if len(outcome.choices) > 1 else {})  # that of the body is of the first only
        for index, choice in enumerate(outcome.choices)
    ]
    answer_id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
    return openai.completion(answer_id, model, choices, _usage(outcome), of_all, is_chat=is_chat)


def _counted(choice: Choice) -> dict[str, object]:
    return openai.counted(choice.seed, choice.kv, asdict(choice.timing))


def _usage(outcome: Outcome) -> dict[str, object]:
    return openai.usage(outcome.prompt_tokens, outcome.completion_tokens)


def _error(outcome: Outcome) -> dict[str, object] | None:
    failure = outcome.failure
    if failure is None:
        return None
    error: dict[str, object] = {"code": failure.code.value, "message": failure.message}
    if failure.code.is_bad_request:
        error |= {"type": "invalid_request_error", "param": failure.param}
    return {**error, "line": outcome.entry.place.line}


def _ulid() -> str:
    """Make a ULID: 26 characters that sort by time, 48 bits of milliseconds and 80 random ones."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


@dataclass(frozen=True, slots=True)
class Recorded:
    """A line that has its record: its mark, and whether the record is a failure."""

    mark: bytes
    is_failed: bool


def read_record(line: bytes) -> Recorded | None:
    """Read the record on a line of an output file, in either JSON form; None where it is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if "response" in record:
        key, error = record.get("custom_id"), record.get("error") or _body_error(record["response"])
    elif "error" in record and "index" in record:
        key, error = record.get("id"), record["error"]
    else:
        return None
    if not isinstance(key, str):
        return None
    if isinstance(error, dict) and error.get("code") == Code.DUPLICATE:
        return Recorded(duplicate_mark(key, error.get("line", 0)), True)
    return Recorded(digest(key), error is not None)


def _body_error(response: object) -> object:
    body = response.get("body") if isinstance(response, dict) else None
    return body.get("error") if isinstance(body, dict) else None
