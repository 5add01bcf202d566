"""Read which form a line wants its answer in: OpenAI's `response_format`, or `structured_outputs`, vLLM's word."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kvlite.batch.item import Json, LineError
from kvlite.batch.values import given, kind, shown, string
from kvlite.errors import UsageError
from kvlite.text.grammar import Grammar

_RENAMED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice"}


def answer_format(body: Json) -> dict[str, Grammar | None]:
    """The `grammar` of the answer where a line says which form that has; None leaves the answer free.

    Raises LineError on a form that is none or cannot be kept to, MissingPackage without llguidance.
    """
    for name, new in _RENAMED.items():
        if body.get(name) is not None:
            hint = f'give "structured_outputs": {{"{new}": ...}}'
            raise LineError(f"{name} is a word that vLLM has given up; {hint}", name)
    asked, constraint = given(body, "response_format", dict), given(body, "structured_outputs", dict)
    if constraint is not None:
        if asked is not None and asked.get("type") != "text":
            raise LineError("response_format and structured_outputs are both given; keep one", "response_format")
        return {"grammar": _structured(constraint)}
    return {} if asked is None else {"grammar": _response_format(asked)}


def _response_format(asked: Json) -> Grammar | None:
    name = "response_format"
    _refuse_others(asked, name, {"type", "json_schema"} if asked.get("type") == "json_schema" else {"type"})
    match asked.get("type"):
        case "text":
            return None
        case "json_object":
            return Grammar.of_any_object()
        case "json_schema":
            described = given(asked, "json_schema", dict) or {}
            _refuse_others(described, f"{name}.json_schema", {"name", "description", "schema", "strict"})
            return _grammar(name, _of_schema, described.get("schema"))
        case other:
            raise LineError(f"{name} {shown(other)} is not supported; give text, json_object or json_schema", name)


def _refuse_others(asked: Json, name: str, known: set[str]) -> None:
    """Raise LineError where a format says more than is read, as other programs write a schema elsewhere."""
    if others := [key for key, value in asked.items() if key not in known and value is not None]:
        wanted = '{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}'
        raise LineError(
            f"{name} has {', '.join(others)}, which is not read there; a schema is {wanted}", "response_format"
        )


def _structured(constraint: Json) -> Grammar:
    name = "structured_outputs"
    found = [word for word, value in constraint.items() if value is not None and value is not False]
    if len(found) != 1 or found[0] not in _MAKERS:
        raise LineError(f"{name} has {', '.join(found) or 'nothing'}; give one of {', '.join(_MAKERS)}", name)
    return _grammar(name, _MAKERS[found[0]], constraint[found[0]])


def _grammar(name: str, make: Callable[[Any], Grammar], value: object) -> Grammar:
    try:
        return make(value)
    except UsageError as error:
        raise LineError(f"{name}: {error}", name) from None


def _of_schema(value: object) -> Grammar:
    if isinstance(value, str):  # as vLLM takes it, too
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the schema is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"the schema is {kind(value)}; give an object")
    return Grammar.of_schema(value)


def _of_choice(value: object) -> Grammar:
    if not isinstance(value, list):
        raise UsageError(f"choice is {kind(value)}; give a list of strings")
    if wrong := [text for text in value if not isinstance(text, str)]:
        raise UsageError(f"a choice is {kind(wrong[0])}; give a string")
    return Grammar.of_choice([string(text, "structured_outputs") for text in value])


def _of_regex(value: object) -> Grammar:
    return Grammar.of_regex(string(value, "structured_outputs"))


def _of_any_object(value: object) -> Grammar:
    if value is not True:
        raise UsageError(f"json_object is {kind(value)}; give true")
    return Grammar.of_any_object()


_MAKERS: dict[str, Callable[[Any], Grammar]] = {
    "json": _of_schema,
    "json_object": _of_any_object,
    "regex": _of_regex,
    "choice": _of_choice,
}
