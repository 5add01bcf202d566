"""Questions about items, asked through one bounded cache: rows are items, and what all questions share is fed once.

Each question follows the item itself, not the question before: the row is put back in between. An answer is right where
every token of its value is the likeliest, given the right answer so far (teacher forcing); on request the model also
answers in its own words, and is right where they hold the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvlite.engine.request import Request
from kvlite.errors import ContextFull
from kvlite.evaluation.journal import Answered, QuestionResult
from kvlite.evaluation.suites import AskedQuestion, EncodedItem
from kvlite.llm.answer import Answer, stream_answers

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.text.template import ChatText

_BLOCK = 64  # tokens of questions fed at once, whose logits are all kept

Asked = dict[int, AskedQuestion]  # by row


def ask(
    engine: Engine,
    text: ChatText,
    items: Sequence[tuple[int, EncodedItem]],
    free_tokens: int = 0,
    blind: bool = False,
    tell: Callable[[float], None] = lambda done: None,
) -> list[Answered]:
    """Ask everything about numbered items, one per row of `engine`.

    With `free_tokens` the model also answers with at most so many. With `blind` the questions are also asked without
    the item, to find those that can be guessed. `tell` is told how many items are done, in parts too.
    """
    most = max(len(item.questions) for _, item in items)
    asked = [
        {row: item.questions[at] for row, (_, item) in enumerate(items) if at < len(item.questions)}
        for at in range(most)
    ]
    guessed = [_guessed(engine, each, len(items)) if blind else set() for each in asked]
    _reset(engine, len(items))
    _feed(engine, [item.prefix for _, item in items])
    tell(len(items) / 2)
    held = [engine.rows.snapshot(row) for row in range(len(items))]
    found: list[list[QuestionResult]] = [[] for _ in items]
    for at, questions in enumerate(asked):
        scores = _forced(engine, questions, len(items))
        answers = {}
        if free_tokens:
            _restore(engine, held)
            answers = _free(engine, text, questions, free_tokens)
        _restore(engine, held)
        for row, question in questions.items():
            right, nll = scores[row]
            answer = answers.get(row)
            free = None if answer is None else holds(answer, question.value)
            result = QuestionResult(
                question.kind, question.back, right, nll, row in guessed[at], question.value, free, answer
            )
            found[row].append(result)
        tell(len(items) * (1 + (at + 1) / most) / 2)
    return [Answered(number, item.tokens, tuple(results)) for (number, item), results in zip(items, found, strict=True)]


def holds(answer: str, value: str) -> bool:
    """True where `answer` has `value` as a whole word or number, in any case."""
    return re.search(rf"(?<!\w)(?<!\d[.,:]){re.escape(value)}(?!\w|[.,:]\d)", answer, re.IGNORECASE) is not None


def _reset(engine: Engine, rows: int) -> None:
    for row in range(rows):
        engine.rows.reset(row)


def _restore(engine: Engine, held: Sequence[object]) -> None:
    for row, snapshot in enumerate(held):
        engine.rows.restore(row, snapshot)  # type: ignore[arg-type]


def _guessed(engine: Engine, questions: Asked, rows: int) -> set[int]:
    """The rows whose question is answered right by a model that did not read the item."""
    _reset(engine, rows)
    return {row for row, (right, _) in _forced(engine, questions, rows).items() if right}


def _feed(engine: Engine, pieces: Sequence[tuple[int, ...]]) -> None:
    """Feed each row its ids, as many at once as the cache takes."""
    for start in range(0, max(map(len, pieces)), engine.plan.chunk):
        engine.score([piece[start : start + engine.plan.chunk] for piece in pieces], last=1)


def _forced(engine: Engine, questions: Asked, rows: int) -> dict[int, tuple[bool, float]]:
    """Feed each row its question with the right answer: was every token of the value the likeliest; nats a token."""
    fed = {row: question.ids[:-1] for row, question in questions.items()}
    pieces = [fed.get(row, ()) for row in range(rows)]
    kept: dict[int, list[Tensor]] = {row: [] for row in questions}
    step = min(_BLOCK, engine.plan.chunk)
    for start in range(0, max(map(len, pieces)), step):
        part = [piece[start : start + step] for piece in pieces]
        logits = engine.score(part)  # [n, T, V], aligned on the right
        for row, question in questions.items():
            first = len(question.prompt.ids) + question.start - 1 - start
            count = len(part[row]) - max(0, first)
            if part[row] and count > 0:
                kept[row].append(logits[row, -count:].float().log_softmax(-1))
    scores = {}
    for row, question in questions.items():
        logs, value = torch.cat(kept[row]), torch.tensor(question.answer[question.start :])
        chosen = logs.gather(-1, value.to(logs.device)[:, None])[:, 0]
        scores[row] = bool((chosen >= logs.amax(-1)).all()), -float(chosen.mean())
    return scores


def _free(engine: Engine, text: ChatText, questions: Asked, most: int) -> dict[int, str]:
    """The model's own answers, greedy."""
    asked = [
        (Request(str(row), each.prompt.ids, max_tokens=most, stop_ids=text.stop_ids, row=row), text.answer(each.prompt))
        for row, each in questions.items()
    ]
    answers = {}
    for name, event in stream_answers(engine, asked):
        if isinstance(event, Answer):
            error = event.completion.error
            if error is not None and not isinstance(error, ContextFull):
                raise error
            answers[int(name)] = event.text.strip()
    return answers
