"""Batches of answers by JSON Schemas, and the same prompts without: are they valid, and at which speed.

    python benchmarks/structured.py FOLDER --lines 500 --out benchmarks/results/structured-smollm2-cpu.json

FOLDER is a model. Three schemas take turns over the lines; half of the lines are greedy, half are drawn. Every answer
that was not cut by max_tokens is parsed and validated with the package jsonschema. The cost of a mask is measured
apart, on answers of equal length: without a grammar, by one that allows every text, and by a schema; `--lines 0`
measures only that. Needs the extra json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema

from one_batch import run_batch

SCHEMAS: dict[str, dict[str, Any]] = {
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "email": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}]},
        },
        "required": ["name", "age", "email"],
        "additionalProperties": False,
    },
    "order": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["id", "items"],
        "additionalProperties": False,
        "$defs": {
            "item": {
                "type": "object",
                "properties": {"what": {"type": "string", "maxLength": 15}, "count": {"type": "integer", "minimum": 1}},
                "required": ["what", "count"],
                "additionalProperties": False,
            }
        },
    },
    "verdict": {
        "type": "object",
        "properties": {
            "label": {"enum": ["positive", "negative", "neutral"]},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "why": {"type": "string"},
        },
        "required": ["label", "score"],
    },
}
ASKED = {
    "person": "Invent the person number {}, as JSON with name, age and email.",
    "order": "Write order number {} of a grocery shop as JSON: its id and its items.",
    "verdict": 'Judge the review "It worked for {} days, then it broke." Answer as JSON with label, score and why.',
}


def line(number: int, *, guided: bool, most: int) -> dict[str, Any]:
    """A line of OpenAI's batch form."""
    name = [*SCHEMAS][number % len(SCHEMAS)]
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": ASKED[name].format(number)}],
        "max_tokens": most,
        "temperature": 0 if number % 2 else 1,
    }
    if guided:
        form = {"name": name, "strict": True, "schema": SCHEMAS[name]}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return {"custom_id": f"{name}-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    """True where the text parses and validates."""
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def measure(model: str, lines: int, most: int, *, guided: bool) -> dict[str, Any]:
    """Run one batch in a process of its own and look at its records."""
    ran = run_batch(model, [line(number, guided=guided, most=most) for number in range(lines)])
    ends: Counter[str] = Counter()
    for record in ran.records:
        choice = record["response"]["body"]["choices"][0]
        schema = SCHEMAS[record["custom_id"].partition("-")[0]]
        if choice["finish_reason"] == "length":
            ends["cut"] += 1
        else:
            ends["valid" if is_valid(choice["message"]["content"], schema) else "invalid"] += 1
    tokens = sum(record["response"]["body"]["usage"]["completion_tokens"] for record in ran.records)
    used_s = ran.used_s
    speed = {"wall_s": round(ran.wall_s, 1), "cpu_s": round(used_s, 1), "tok_per_cpu_s": round(tokens / used_s, 1)}
    return {"lines": len(ran.records), "tokens": tokens, **ends, **speed, "summary": ran.summary}


def measure_masks(model: str, rounds: int = 3, rows: int = 16, most: int = 32) -> dict[str, Any]:
    """The least processor time for a token of `rows` greedy answers of `most` tokens, which take turns."""
    from kvlite import LLM

    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    forms: dict[str, dict[str, Any]] = {
        "without": {},
        "every_text": {"regex": "(?s:.+)"},
        "schema": {"json_schema": {**text, "additionalProperties": False}},
    }
    prompts = [f"Tell me a story about the number {number}." for number in range(rows)]
    least, texts = dict.fromkeys(forms, float("inf")), dict[str, list[str]]()
    with LLM(model, kv_budget="1GB") as llm:
        for _ in range(rounds):
            for name, form in forms.items():
                since = time.process_time()
                answers = llm.generate(prompts, greedy=True, min_tokens=most, max_tokens=most, **form)
                used_s, texts[name] = time.process_time() - since, [answer.text for answer in answers]
                least[name] = min(least[name], 1000 * used_s / sum(answer.completion_tokens for answer in answers))
    same = sum(map(str.__eq__, texts["without"], texts["every_text"]))
    return {"cpu_ms_per_token": {name: round(value, 3) for name, value in least.items()}, "rows": rows, "same": same}


def main() -> None:
    """Measure both, write and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "model": Path(asked.model).name,
        "max_tokens": asked.max_tokens,
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "masks": measure_masks(asked.model),
    }
    if asked.lines:
        found["with"] = measure(asked.model, asked.lines, asked.max_tokens, guided=True)
        found["without"] = measure(asked.model, asked.lines, asked.max_tokens, guided=False)
    written = json.dumps(found, indent=1)
    if asked.out is not None:
        asked.out.write_text(f"{written}\n", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
