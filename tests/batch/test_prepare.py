"""A line's settings over the flags over the model's; what one engine cannot do is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvlite.batch.item import Code, Failure, Item
from kvlite.batch.prepare import Preparer, Work
from kvlite.llm.answer import BATCH_MAX_TOKENS
from kvlite.options import AnswerOptions
from kvlite.text.grammar import Grammar

DRAWS = {"do_sample": True, "temperature": 0.7, "top_k": 3}


def line(**changes: Any) -> Item:
    return Item(3, 4, "k", **({"prompt": "Hi"} | changes))


def test_a_line_wins_over_the_defaults(text: Any) -> None:
    preparer = Preparer(text, AnswerOptions(temperature=0.5, seed=4, max_tokens=9, stop=("a",)), DRAWS)
    plain = preparer.prepare(line())
    assert (plain.requests[0].sampling.temperature, plain.requests[0].sampling.seed) == (0.5, 4)
    assert (plain.requests[0].max_tokens, plain.stop) == (9, ("a",))
    own = preparer.prepare(line(sampling={"temperature": 0, "seed": 7}, max_tokens=2, stop=()))
    assert (own.requests[0].sampling.temperature, own.requests[0].sampling.seed) == (0, 7)
    assert own.requests[0].sampling.top_k == 3
    assert (own.requests[0].max_tokens, own.stop) == (2, ())


def test_answers_are_limited_unless_told(text: Any) -> None:
    assert Preparer(text, AnswerOptions()).prepare(line()).requests[0].max_tokens == BATCH_MAX_TOKENS


def test_a_lines_form_wins_over_that_of_the_flags(text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(text), "guide", lambda self, prompt, grammar: grammar, raising=False)
    preparer = Preparer(text, AnswerOptions(regex="a"))
    own, free = line(settings={"grammar": Grammar.of_regex("b")}), line(settings={"grammar": None})
    asked = [preparer.prepare(one).requests[0].guide for one in (line(), own, free)]
    assert asked == [Grammar.of_regex("a"), Grammar.of_regex("b"), None]
    assert len({preparer.dedupe_key(replace(one, sampling={"temperature": 0})) for one in (line(), own)}) == 2


def test_a_lines_least_tokens_and_log_probabilities_win_over_those_of_the_flags(text: Any) -> None:
    preparer = Preparer(text, AnswerOptions(min_tokens=5, logprobs=2))
    lines = [line(), line(max_tokens=3), line(settings={"min_tokens": 1, "logprobs": None})]
    asked = [preparer.prepare(one).requests[0] for one in lines]
    assert [(one.rules.min_new_tokens, one.logprobs) for one in asked] == [(5, 2), (3, 2), (1, None)]
    refused = preparer.prepare(line(max_tokens=3, settings={"min_tokens": 4}))
    assert isinstance(refused, Failure) and "min_tokens is 4" in refused.message


def test_no_answer_is_longer_than_the_models_window(text: Any) -> None:
    preparer = Preparer(text, AnswerOptions(), most_tokens=50)
    asked = [preparer.prepare(line(max_tokens=most)).requests[0].max_tokens for most in (None, 10**12, 50, 7)]
    assert asked == [50, 50, 50, 7]


def test_what_no_record_would_hold_is_refused(text: Any) -> None:
    many, likely = line(n=3), line(settings={"logprobs": 2})
    for form, one, name in (("simple", many, "n"), ("text", many, "n"), ("text", likely, "logprobs")):
        refused = Preparer(text, AnswerOptions(), out_format=form).prepare(one)
        assert isinstance(refused, Failure)
        assert f"--out-format {form} has no place for {name}" in refused.message
    assert not isinstance(Preparer(text, AnswerOptions(), out_format="simple").prepare(likely), Failure)


def test_without_a_seed_each_line_has_its_own_from_its_id(text: Any) -> None:
    preparer = Preparer(text, AnswerOptions())
    seed = preparer.sampling(line()).seed
    assert preparer.sampling(line()).seed == seed
    assert preparer.sampling(Item(0, 1, "other", prompt="Hi")).seed != seed


def test_choices_count_the_seed_up(text: Any) -> None:
    requests = Preparer(text, AnswerOptions()).prepare(line(n=3, sampling={"seed": 2**63 - 2})).requests
    assert [request.sampling.seed for request in requests] == [2**63 - 2, 2**63 - 1, 0]
    assert len({request.id for request in requests}) == 3


def test_system_prompts(text: Any) -> None:
    preparer = Preparer(text, AnswerOptions(system="S"))

    def fed(item: Item) -> str:
        return "".join(map(chr, preparer.prepare(item).requests[0].ids))

    own = ({"role": "system", "content": "own"}, {"role": "user", "content": "Hi"})
    assert fed(line()) == "S\nHi"
    assert fed(line(prompt=None, messages=own[1:])) == "S\nHi"
    assert fed(line(prompt=None, messages=own)) == "own\nHi"
    assert fed(line(raw=True)) == "Hi"
    assert fed(line(template_kwargs={"a": 1})) == "S\nHi"


def test_an_empty_system_prompt_is_none_whatever_form_a_line_has(text: Any) -> None:
    preparer = Preparer(text, AnswerOptions(system=""))
    asked = [line(), line(template_kwargs={"a": 1}), line(prompt=None, messages=({"role": "user", "content": "Hi"},))]
    assert ["".join(map(chr, preparer.prepare(one).requests[0].ids)) for one in asked] == ["Hi"] * 3


def test_a_prompt_cannot_be_gone_on_with_as_if_it_were_an_answer(text: Any) -> None:
    for asked in (line(), line(prompt=None, messages=({"role": "user", "content": "Hi"},))):
        refused = Preparer(text, AnswerOptions()).prepare(replace(asked, continues=True))
        assert isinstance(refused, Failure) and "continue_final_message" in refused.message


def test_pins_can_be_switched_off(text: Any) -> None:
    assert Preparer(text, AnswerOptions()).prepare(line()).requests[0].pins == ((0, 1),)
    assert Preparer(text, AnswerOptions(), pin_system=False).prepare(line()).requests[0].pins == ()


def test_what_the_template_refuses_is_refused(text: Any) -> None:
    refused = Preparer(text, AnswerOptions()).prepare(
        line(prompt=None, messages=({"role": "user", "content": "unrenderable"},))
    )
    assert refused == Failure(Code.INVALID, "the template refuses it")


def test_an_error_that_nobody_foresaw_is_a_failure_of_its_line(text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OverflowError("int too large")

    monkeypatch.setattr(type(text), "conversation", fails)
    failed = Preparer(text, AnswerOptions()).prepare(line(prompt=None, messages=({"role": "user", "content": "Hi"},)))
    assert isinstance(failed, Failure)
    assert (failed.code, "OverflowError: int too large" in failed.message) == (Code.INTERNAL, True)


@pytest.mark.parametrize(
    ("model", "named"),
    [("m", "m"), ("m", None), ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct"), (None, "anything")],
)
def test_a_line_may_name_the_model_of_the_run(text: Any, model: str | None, named: str | None) -> None:
    assert isinstance(Preparer(text, AnswerOptions(), required=model).prepare(line(model=named)), Work)


def test_a_line_for_another_model_is_a_mismatch(text: Any) -> None:
    refused = Preparer(text, AnswerOptions(), required="m").prepare(line(model="x"))
    assert isinstance(refused, Failure)
    assert refused.code is Code.MODEL_MISMATCH
    assert all(word in refused.message for word in ('"x"', '"m"', "-m"))


def test_only_greedy_items_are_deduplicated(text: Any) -> None:
    preparer = Preparer(text, AnswerOptions())
    assert preparer.dedupe_key(line()) == preparer.dedupe_key(line(sampling={"seed": 4}))
    assert preparer.dedupe_key(line()) != preparer.dedupe_key(line(prompt="Ho"))
    assert preparer.dedupe_key(line()) != preparer.dedupe_key(line(max_tokens=1))
    assert preparer.dedupe_key(line(sampling={"temperature": 1.0})) is None
