"""The form that a line wants its answer in, under OpenAI's name and vLLM's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvlite.batch.answer_format import answer_format
from kvlite.batch.item import LineError
from kvlite.text.grammar import Grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"response_format": None}, {}),
        ({"response_format": {"type": "text"}}, {"grammar": None}),
        ({"response_format": {"type": "json_object"}}, {"grammar": Grammar.of_any_object()}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            {"grammar": Grammar.of_schema(SCHEMA)},
        ),
        ({"structured_outputs": {"json": SCHEMA}}, {"grammar": Grammar.of_schema(SCHEMA)}),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, {"grammar": Grammar.of_schema(SCHEMA)}),
        ({"structured_outputs": {"json_object": True}}, {"grammar": Grammar.of_any_object()}),
        ({"structured_outputs": {"regex": "a+"}}, {"grammar": Grammar.of_regex("a+")}),
        ({"structured_outputs": {"choice": ["a", 'b"\n']}}, {"grammar": Grammar.of_choice(["a", 'b"\n'])}),
    ],
)
def test_forms(body: dict[str, Any], expected: dict[str, Grammar | None]) -> None:
    assert answer_format(body) == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"response_format": {"type": "xml"}}, '"xml" is not supported'),
        ({"response_format": "json"}, "a string"),
        ({"response_format": {"type": "json_schema"}}, "the schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "not"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "has schema, which is not read there"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "has json_schema, which is not read there"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}}, "json_schema has x"),
        ({"structured_outputs": {"choice": []}}, "at least one text"),
        ({"structured_outputs": {}}, "has nothing"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "regex, choice"),
        ({"structured_outputs": {"grammar": "x"}}, "has grammar"),
        ({"structured_outputs": {"json": "{"}}, "not JSON"),
        ({"structured_outputs": {"regex": "("}}, "unclosed group"),
        ({"structured_outputs": {"choice": "a"}}, "a string"),
        ({"structured_outputs": {"choice": [1]}}, "a choice is the number 1; give a string"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "keep one"),
        ({"guided_regex": "a"}, '{"regex": ...}'),
    ],
)
def test_what_is_none_is_refused_with_the_reason(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(LineError) as refused:
        answer_format(body)
    assert reason in str(refused.value) and refused.value.failure.param in body
