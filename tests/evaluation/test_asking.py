"""Questions as they are asked: each behind the item alone, scored by what the model itself computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from kvlite.console import Console
from kvlite.engine.engine import Engine
from kvlite.engine.request import Completion, Request
from kvlite.evaluation.asking import ask
from kvlite.evaluation.journal import QuestionResult
from kvlite.evaluation.suites import EncodedItem, Suite
from kvlite.evaluation.variant import REFERENCE
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel
from kvlite.options import ModelOptions
from tests.engine_for_tests import make_engine


@pytest.fixture
def model() -> TextModel:
    return TextModel.load(RunSpec.of(ModelOptions(model="demo", think="off", fuse=False)), Console(quiet=True))


@pytest.fixture
def items(model: TextModel) -> list[EncodedItem]:
    return Suite("dialogue", 3, 900).items(model.text)


def outcomes(engine: Engine, model: TextModel, items: Sequence[EncodedItem], **options: object) -> list[QuestionResult]:
    found = ask(engine, model.text, list(enumerate(items)), **options)  # type: ignore[arg-type]
    assert [each.number for each in found] == list(range(len(items)))
    return [outcome for each in found for outcome in each.outcomes]


@torch.inference_mode()
def test_the_full_cache_scores_what_the_model_computes(model: TextModel, items: list[EncodedItem]) -> None:
    engine = REFERENCE.place(model, 1000).open(model.loaded, len(items))
    found = outcomes(engine, model, items)
    asked = [(item, question) for item in items for question in item.questions]
    assert len(found) == len(asked) > len(items)
    model.loaded.model.set_attn_implementation("eager")
    for (item, question), outcome in zip(asked, found, strict=True):
        ids = torch.tensor([item.prefix + question.ids])
        count = len(question.answer) - question.start
        logits = model.loaded.model(input_ids=ids).logits[0, -count - 1 : -1].float()
        value = ids[0, -count:]
        nll = torch.nn.functional.cross_entropy(logits, value)
        assert outcome.nll == pytest.approx(float(nll), rel=1e-3, abs=1e-4)
        assert outcome.right == bool((logits.argmax(-1) == value).all())


@pytest.mark.parametrize("budget", ["1000tok", "64tok"])
def test_a_question_does_not_see_the_one_before_and_rows_do_not_see_each_other(
    model: TextModel, items: list[EncodedItem], budget: str
) -> None:
    together = outcomes(make_engine(model.loaded, budget, "window", rows=3), model, items, free_tokens=4)
    alone = [
        outcome
        for item in items
        for question in item.questions
        for outcome in outcomes(
            make_engine(model.loaded, budget, "window"), model, [EncodedItem(item.prefix, (question,))], free_tokens=4
        )
    ]
    assert [(one.right, one.answer) for one in together] == [(one.right, one.answer) for one in alone]
    assert [one.nll for one in together] == pytest.approx([one.nll for one in alone], rel=1e-3, abs=1e-4)


@torch.inference_mode()
def test_a_value_is_guessed_where_the_model_says_it_without_the_item(
    model: TextModel, items: list[EncodedItem]
) -> None:
    item = items[0]
    question = item.questions[0]
    engine = REFERENCE.place(model, 1000).open(model.loaded, 1)
    asked = Request("q", question.prompt.ids, max_tokens=len(question.answer))
    said = next(each.ids for each in engine.run([asked]) if isinstance(each, Completion))
    known = EncodedItem(item.prefix, (question, replace(question, answer=said, start=0)))
    assert [each.guessed for each in outcomes(engine, model, [known], blind=True)] == [False, True]
