"""Grammars: what is none is refused in one line; what is one lets through its texts and nothing else."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlite.errors import MissingPackage, UsageError
from kvlite.text.grammar import Grammar, _checked
from kvlite.text.guide import Guide, Guides
from kvlite.text.stream import AnswerText, Part
from kvlite.text.template import ChatText

KINDS = ["byte-level", "sentencepiece", "sentencepiece-legacy"]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("make", "value", "reason"),
    [
        (Grammar.of_schema, {"not": {}}, "not"),
        (Grammar.of_schema, {"type": "wat"}, "wat"),
        (Grammar.of_schema, {"$ref": "#/$defs/x"}, "does not exist"),
        (Grammar.of_schema, {"$ref": "http://x.y/z"}, "http://x.y/z"),
        (Grammar.of_schema, {"type": "string", "pattern": "(?=a)b"}, "look-around"),
        (Grammar.of_schema, {"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        (Grammar.of_regex, "(", "unclosed group"),
        (Grammar.of_regex, r"(a)\1", "backreferences"),
        (Grammar.of_regex, "", "empty"),
        (Grammar.of_choice, [], "nothing to choose from"),
        (Grammar.of_choice, ["a", ""], "empty"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(make: Any, value: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        make(value)
    assert "\n" not in str(refused.value)


def test_without_llguidance_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    _checked.cache_clear()
    with pytest.raises(MissingPackage, match=r'pip install "kvlite-llm\[json\]"') as refused:
        Grammar.of_regex("a")
    assert refused.value.exit_code == 3


def allowed(mask: bytes | None, vocab: int) -> list[int]:
    assert mask is not None
    return [token for token in range(vocab) if token >> 3 < len(mask) and mask[token >> 3] >> (token & 7) & 1]


def walk(tokenizer: Any, guide: Guide, stop_ids: frozenset[int], chance: random.Random) -> tuple[list[int], bool]:
    """Ids drawn from what the guide allows, and whether they came to an end within 200."""
    said: list[int] = []
    while not guide.is_over:
        tokens = allowed(guide.mask(), len(tokenizer))
        ends = [token for token in tokens if token in stop_ids]
        if len(said) == 200:
            return said, False
        token = ends[0] if ends and chance.random() < 0.5 else chance.choice(tokens)
        if token in stop_ids:
            break
        said.append(token)
        guide.accept(token)
    assert guide.error is None
    return said, True


def read(tokenizer: Any, ids: list[int], begins: Part = Part.ANSWER) -> AnswerText:
    reader = AnswerText(tokenizer, begins=begins)
    for token in ids:
        reader.push(token)
    reader.finish()
    return reader


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas whose answers are short however they are drawn."""
    leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 4)),
        st.builds(
            lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, *[st.integers(0, 50)] * 2
        ),
        st.builds(
            lambda values: {"enum": values}, st.lists(st.sampled_from(["é", "a", 1, None]), min_size=1, unique=True)
        ),
        st.just({"type": "boolean"}),
    )

    def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        arrays = st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 2)
        )
        keys = st.dictionaries(st.sampled_from(["a", "b c", "ü"]), inner, max_size=2)
        return arrays | keys.map(
            lambda held: {
                "type": "object",
                "properties": held,
                "required": sorted(held)[:1],
                "additionalProperties": False,
            }
        )

    return st.recursive(leaves, nested, max_leaves=4)


@given(schemas(), st.sampled_from(KINDS), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_whatever_is_drawn_parses_and_validates(
    make_tokenizer: Any, schema: dict[str, Any], kind: str, seed: int
) -> None:
    tokenizer = make_tokenizer("chatml", kind)
    guides, stop_ids = guides_of(tokenizer)
    said, is_whole = walk(tokenizer, guides.of(Grammar.of_schema(schema), Part.ANSWER)(), stop_ids, random.Random(seed))
    if is_whole:
        jsonschema.validate(json.loads(read(tokenizer, said).text), schema)


def guides_of(tokenizer: Any) -> tuple[Guides, frozenset[int]]:
    """Guides of answers that two ids end."""
    stop_ids = frozenset(tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>"))
    return Guides(tokenizer, stop_ids), stop_ids


def test_every_stop_id_may_end_what_is_complete_and_none_what_is_not(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    guides, stop_ids = guides_of(tokenizer)
    guide = guides.of(Grammar.of_regex("ab?"), Part.ANSWER)()
    assert not stop_ids & {*allowed(guide.mask(), len(tokenizer))}
    guide.accept(tokenizer.convert_tokens_to_ids("a"))
    assert stop_ids <= {*allowed(guide.mask(), len(tokenizer))} and not guide.is_over
    guide.accept(tokenizer.convert_tokens_to_ids("b"))
    assert guide.is_over and guide.error is None


def test_guides_of_one_grammar_go_their_own_ways(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    start = guides_of(tokenizer)[0].of(Grammar.of_choice(["ab", "cd"]), Part.ANSWER)
    one, other = start(), start()
    one.accept(tokenizer.convert_tokens_to_ids("a"))
    other.accept(tokenizer.convert_tokens_to_ids("c"))
    assert allowed(one.mask(), len(tokenizer)) == [tokenizer.convert_tokens_to_ids("b")]
    assert allowed(other.mask(), len(tokenizer)) == [tokenizer.convert_tokens_to_ids("d")]


def encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("style", ["qwen3", "harmony"])
@pytest.mark.parametrize("thinks", [True, False])
def test_a_model_may_think_first_and_then_follows_the_grammar(make_tokenizer: Any, style: str, thinks: bool) -> None:
    tokenizer = make_tokenizer(style)
    guide = Guides(tokenizer, frozenset({tokenizer.eos_token_id})).of(Grammar.of_choice(["yes"]), Part.START)()
    open_, close, lead = {
        "qwen3": ("<think>", "</think>", ""),
        "harmony": (
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
            "<|channel|>final<|message|>",
        ),
    }[style]
    text = f"{open_}a fox, {{}}\n{close}yes" if thinks else f"{lead}yes"
    said = encoded(tokenizer, text)
    for token in said:
        assert token in allowed(guide.mask(), len(tokenizer)) and not guide.is_over
        guide.accept(token)
    assert guide.is_over and guide.error is None
    assert read(tokenizer, said, Part.START).text == "yes"


def test_thinking_does_not_end_before_it_is_closed(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("qwen3")
    guide = Guides(tokenizer, frozenset({tokenizer.eos_token_id})).of(Grammar.of_choice(["yes"]), Part.THINKING)()
    free = allowed(guide.mask(), len(tokenizer))
    assert len(free) == len(tokenizer) - 1 and tokenizer.eos_token_id not in free
    for token in encoded(tokenizer, "yes</think>"):
        guide.accept(token)
    assert len(allowed(guide.mask(), len(tokenizer))) < 10


@pytest.mark.parametrize(("think", "may"), [("auto", True), ("off", False)])
def test_a_model_that_is_not_to_think_starts_with_the_grammar(make_tokenizer: Any, think: str, may: bool) -> None:
    tokenizer = make_tokenizer("qwen3")
    text = ChatText(tokenizer, think=think)
    guide = text.guide(text.prompt("Hi"), Grammar.of_schema(PERSON))()
    assert (tokenizer.convert_tokens_to_ids("<think>") in allowed(guide.mask(), len(tokenizer))) is may


def test_a_tokenizer_that_cannot_be_read_is_said(make_tokenizer: Any) -> None:
    class Slow:
        def __len__(self) -> int:
            return 5

    with pytest.raises(UsageError, match="its tokenizer"):
        Guides(Slow(), frozenset({1})).of(Grammar.of_regex("a"), Part.ANSWER)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    _checked.cache_clear()
