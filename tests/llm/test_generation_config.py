"""A model's generation_config.json: what transformers' greedy decoding applies is applied, the rest is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvlite import LLM
from kvlite.errors import BrokenModel
from kvlite.llm.answer import AnswerSettings
from kvlite.llm.generation import not_applied
from kvlite.llm.text_model import TextModel
from kvlite.options import AnswerOptions
from kvlite.text.template import ChatText
from tests.scripted import chain, ids, write_scripted

RED_BLUE = {**chain("go", "red", "blue"), "red": ["blue", "green"], "blue": ["red", "green"], "green": ["</s>", "red"]}
"""red and blue by turns for ever, or green, behind which it ends."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_scripted(folder, RED_BLUE)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[TextModel]:
    with LLM(folder, kv_budget="64tok", fuse=False) as llm:
        yield llm.model


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Callable[..., str]:
    """The greedy answer of transformers behind `go`, for fields of its generation_config.json."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("go", return_tensors="pt").input_ids

    def answer(**generation: Any) -> str:
        with torch.inference_mode():
            said = model.generate(prompt, do_sample=False, **{"max_new_tokens": 6} | generation)[0, prompt.shape[1] :]
        return str(tokenizer.decode(said, skip_special_tokens=True))

    return answer


def with_generation(model: TextModel, **generation: Any) -> LLM:
    """The loaded model with fields over those of its generation_config.json."""
    said = {**model.generation, **ids(generation, model.text.tokenizer)}
    files = replace(model.files, generation=said)
    text = ChatText(model.text.tokenizer, generation=said)
    return LLM(replace(model, files=files, text=text))


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, "red blue red blue red blue"),
        ({"suppress_tokens": ["blue"]}, "red green"),
        ({"begin_suppress_tokens": ["red"]}, ""),
        ({"begin_suppress_tokens": ["</s>"]}, "red blue red blue red blue"),
        ({"bad_words_ids": [["blue"]]}, "red green"),
        ({"bad_words_ids": [["blue", "red"], ["</s>"]]}, "red blue green"),
        ({"no_repeat_ngram_size": 2}, "red blue red green"),
        ({"no_repeat_ngram_size": 3}, "red blue red blue green"),
        ({"repetition_penalty": 1.5}, "red blue green"),
        ({"max_new_tokens": 4}, "red blue red blue"),
        ({"suppress_tokens": ["blue", "green"]}, "red"),
        ({"bad_words_ids": [["red", "blue"]], "min_new_tokens": 3}, "red green red green"),
    ],
)
def test_greedy_answers_are_those_of_transformers(
    model: TextModel, theirs: Callable[..., str], generation: dict[str, Any], expected: str
) -> None:
    llm = with_generation(model, **generation)
    limit = {} if "max_new_tokens" in generation else {"max_tokens": 6}
    (answer,) = llm.generate(["go"], raw=True, **limit)
    assert answer.text == expected == theirs(**ids(generation, model.text.tokenizer))


def test_stop_strings_end_an_answer_and_are_no_part_of_it(model: TextModel) -> None:
    (answer,) = with_generation(model, stop_strings=["blue red", "never"]).generate(["go"], raw=True)
    assert (answer.text, answer.finish_reason) == ("red ", "stop")


def test_rules_are_a_rows_own(model: TextModel) -> None:
    llm = with_generation(model, no_repeat_ngram_size=2)
    texts = [answer.text for answer in llm.generate(["go", "red blue red"], raw=True, max_tokens=9)]
    assert texts == ["red blue red green", "green"]


def test_what_is_not_applied_is_named_once(tmp_path: Path) -> None:
    write_scripted(tmp_path, RED_BLUE, generation={"num_beams": 4, "typical_p": 0.9, "max_length": 20})
    told: list[str] = []
    with LLM(tmp_path, kv_budget="64tok", fuse=False, say=told.append) as llm:
        llm.generate(["go", "go"], raw=True, max_tokens=2)
    expected = "generation_config.json asks for num_beams 4, max_length 20, which kvlite does not apply"
    assert [line for line in told if "generation_config" in line] == [expected]


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"num_beams": 1, "typical_p": 0.5, "remove_invalid_values": False},
        {"max_length": 4096},
        {"max_length": 2048},
    ],
)
def test_what_changes_nothing_is_not_named(generation: dict[str, Any]) -> None:
    assert not_applied(generation, 2048) == []


WRONG: list[dict[str, Any]] = [{"top_k": -3}, {"temperature": "hot"}, {"top_p": 7}, {"min_p": [1]}]


@pytest.mark.parametrize("generation", WRONG)
def test_a_value_that_cannot_be_is_refused_unless_something_replaces_it(generation: dict[str, Any]) -> None:
    asked = {"do_sample": True, **generation}
    with pytest.raises(BrokenModel, match=rf"^generation_config\.json: {next(iter(generation))} is "):
        AnswerSettings.of(asked, AnswerOptions())
    assert AnswerSettings.of(asked, AnswerOptions(greedy=True)).sampling.is_greedy
    assert AnswerSettings.of(asked, AnswerOptions(temperature=0.0)).sampling.is_greedy
    (name,) = generation
    replaced = AnswerOptions(**{name: 0.5, "seed": 0})
    assert getattr(AnswerSettings.of(asked, replaced).sampling, name) == 0.5


def test_a_top_k_of_minus_one_is_all_tokens() -> None:
    assert AnswerSettings.of({"do_sample": True, "top_k": -1}, AnswerOptions(seed=0)).sampling.top_k == 0


@pytest.mark.parametrize(
    "generation",
    [
        {"suppress_tokens": 7},
        {"suppress_tokens": [-1]},
        {"bad_words_ids": [7]},
        {"bad_words_ids": [[]]},
        {"no_repeat_ngram_size": 1.5},
        {"max_new_tokens": "many"},
    ],
)
def test_rules_that_cannot_be_are_refused(generation: dict[str, Any]) -> None:
    with pytest.raises(BrokenModel, match=rf"^generation_config\.json: {next(iter(generation))} is .*; expected "):
        AnswerSettings.of(generation, AnswerOptions())


def test_a_limit_typed_or_of_the_line_wins_over_the_models() -> None:
    generation = {"max_new_tokens": 7}
    assert AnswerSettings.of(generation, AnswerOptions()).max_tokens == 7
    assert AnswerSettings.of(generation, AnswerOptions(max_tokens=3)).max_tokens == 3
