"""Answers of the built-in model that follow a grammar, from Python, the command line and a batch's lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kvlite import LLM, FinishReason, UsageError
from kvlite.cli import main
from kvlite.llm.answer import AnswerSettings
from kvlite.llm.conversation import Conversation
from kvlite.options import AnswerOptions
from kvlite.text.grammar import _checked

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"enum": ["red", "blue", 3]}, "minItems": 1, "maxItems": 3}
PROMPTS = ["Hello! What is your name?", "What can you do?", "Tell me a joke"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", kv_budget="2MB", kv_per_seq="128tok") as llm:
        yield llm


@pytest.mark.parametrize("drawn", [{"greedy": True}, {"temperature": 1.5, "seed": 3}])
@pytest.mark.parametrize("schema", [PERSON, LIST], ids=["object", "array"])
def test_answers_validate(llm: LLM, schema: dict[str, Any], drawn: dict[str, Any]) -> None:
    answers = llm.generate(PROMPTS, json_schema=schema, max_tokens=100, **drawn)
    for answer in answers:
        assert answer.finish_reason is FinishReason.STOP
        jsonschema.validate(json.loads(answer.text), schema)


def test_a_regular_expression_a_choice_and_a_limit(llm: LLM) -> None:
    assert {a.text for a in llm.generate(PROMPTS, choice=["red", "blue"], temperature=2.0)} <= {"red", "blue"}
    (matched,) = llm.generate(["Hi"], regex="[0-9]{3}-[a-c]{2}", greedy=True)
    assert matched.text[3] == "-" and len(matched.text) == 6 and matched.finish_reason is FinishReason.STOP
    (cut,) = llm.generate(["Hi"], regex="[0-9]{30}", max_tokens=4, greedy=True)
    assert cut.finish_reason is FinishReason.LENGTH and len(cut.text) == 4


def test_stop_strings_end_an_answer_inside_its_grammar(llm: LLM) -> None:
    (answer,) = llm.generate(["Hi"], json_schema=PERSON, stop='"age', greedy=True)
    assert answer.finish_reason is FinishReason.STOP and '"name"' in answer.text and '"age' not in answer.text


def test_what_follows_a_grammar_is_a_turn_of_a_chat(llm: LLM) -> None:
    asked = [{"role": "user", "content": PROMPTS[0]}]
    answer = llm.chat(asked, json_schema=PERSON, greedy=True)
    said = [*asked, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "And you?"}]
    assert llm.chat(said, choice=["red", "blue"], greedy=True).text in ("red", "blue")


def test_an_answer_that_was_cut_goes_on_in_its_grammar(llm: LLM) -> None:
    chat = Conversation(llm.engine, llm.model.text)
    settings = AnswerSettings.of({}, AnswerOptions(json_schema=json.dumps(PERSON), max_tokens=6, greedy=True))
    messages = [{"role": "user", "content": "Hi"}]
    *_, answer = chat.ask(messages, settings)
    text = answer.text
    while answer.finish_reason is FinishReason.LENGTH:
        *_, answer = chat.go_on([*messages, {"role": "assistant", "content": text}], settings)
        text += answer.text
    jsonschema.validate(json.loads(text), PERSON)
    with pytest.raises(UsageError, match="not known"):
        chat.go_on([*messages, {"role": "assistant", "content": "else"}], settings)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"json_schema": {"not": {}}}, 'json_schema: Unimplemented keys: \\["not"\\]'),
        ({"json_schema": "[1]"}, "cannot read"),
        ({"regex": "("}, "regex: unclosed group"),
        ({"regex": ""}, "regex: the expression is empty"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice are both given"),
    ],
)
def test_what_is_no_grammar_is_refused(llm: LLM, asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        llm.generate(PROMPTS, **asked)


def test_run_takes_a_file_with_a_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(PERSON))
    assert main(["run", "-m", "demo", "--json-schema", str(path), "--greedy", "Hi"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), PERSON)


@pytest.mark.parametrize(
    ("flags", "reason"), [(("--json-schema", '{"not":{}}'), "not"), (("--regex", "("), "unclosed")]
)
@pytest.mark.parametrize("command", [("run",), ("batch", "in.jsonl", "-m"), ("batch", "in.jsonl", "--dry-run", "-m")])
def test_a_bad_grammar_is_one_line_before_anything_is_looked_for(
    command: tuple[str, ...], flags: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "no-such-model", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_without_the_extra_nothing_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    _checked.cache_clear()
    assert main(["run", "no-such-model", "--regex", "a"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "kvlite-llm[json]"' in line


def test_rows_of_a_batch_follow_grammars_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def chat(name: str, **body: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": "Hello! What is your name?"}], "max_tokens": 90} | body
        return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}

    strict = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    lines = [
        chat("person", response_format=strict, n=2, temperature=1.0),
        chat("free", response_format={"type": "text"}),
        chat("flag"),
        chat("digits", structured_outputs={"regex": "[0-9]{5}"}),
        chat("bad", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}),
        {"id": "simple", "prompt": "Hi", "response_format": {"type": "json_object"}, "max_tokens": 9},
    ]
    Path("in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    flags = ["-m", "demo", "--kv-budget", "2MB", "--choice", "red", "--choice", "blue", "--greedy"]
    assert main(["batch", "in.jsonl", "-o", "out.jsonl", *flags]) == 5
    records = {}
    for line in Path("out.jsonl").read_text().splitlines():
        record = json.loads(line)
        records[record.get("custom_id") or record["id"]] = record
    texts = {
        name: [choice["message"]["content"] for choice in record["response"]["body"].get("choices", ())]
        for name, record in records.items()
        if name != "simple"
    }
    for text in texts["person"]:
        jsonschema.validate(json.loads(text), PERSON)
    assert "demonstration" in texts["free"][0]
    assert texts["flag"][0] in ("red", "blue")
    assert len(texts["digits"][0]) == 5 and texts["digits"][0].isdigit()
    error = records["bad"]["response"]["body"]["error"]
    assert error["param"] == "response_format" and "not" in error["message"]
    assert records["simple"]["text"].startswith("{")
    capsys.readouterr()
    assert main(["batch", "in.jsonl", "-o", "out.jsonl", *flags[:-3], "--greedy"]) == 2  # another grammar
    assert "grammar" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing on stdin, and no grammar that was read before is remembered."""
    monkeypatch.setattr(sys, "stdin", None)
    yield
    _checked.cache_clear()
