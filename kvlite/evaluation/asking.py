"""Conversations held with a model, several at a time as rows of one engine.

The model answers the questions, greedily, and its answers stay in the cache. Turns that ask for nothing are fed with
their written answers, in one piece with the question that follows: a small model left to chat soon repeats itself, and
then nothing can be measured. Ids once fed are never rendered again, as in `kvlite chat`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvlite.engine.request import FinishReason, Request
from kvlite.errors import ContextFull
from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.journal import Answered, QuestionResult
from kvlite.llm.answer import Answer, stream_answers

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.text.stream import AnswerText
    from kvlite.text.template import ChatText, Encoded


@dataclass(slots=True)
class _Row:
    """A conversation on its way; `tokens` are fed, `ends` count those up to the end of each message of the user."""

    number: int
    conversation: Conversation
    tokens: int = 0
    ends: list[int] = field(default_factory=list)
    outcomes: list[QuestionResult] = field(default_factory=list)
    ended: bool = True
    thinking: bool = False
    is_over: bool = False

    def next_question(self, text: ChatText) -> Encoded | None:
        """The next question with all ids to feed up to its end; None where the window is over or none is left."""
        ids: tuple[int, ...] = ()
        for turn in () if self.is_over else self.conversation.turns[len(self.ends) :]:
            if self.ends:
                prompt = text.next_turn(turn.user, ended=self.ended, thinking=self.thinking)
            else:
                prompt = text.conversation([{"role": "user", "content": turn.user}])
            ids += prompt.ids
            self.ends.append(self.tokens + len(ids))
            if turn.probe is not None:
                return replace(prompt, ids=ids)
            ids += text.written(turn.answer)
            self.ended, self.thinking = True, False
        return None

    def take(self, answer: Answer, max_tokens: int) -> None:
        """Record an answer; one that the model's window did not hold ends the conversation."""
        error = answer.completion.error
        if error is not None and not isinstance(error, ContextFull):
            raise error
        is_cut = answer.finish_reason is FinishReason.LENGTH and answer.completion_tokens < max_tokens
        if error is not None or is_cut:
            self.is_over = True
            return
        self.tokens = self.ends[-1] + answer.completion_tokens
        self.ended, self.thinking = answer.ended_itself, answer.is_thinking
        turn = len(self.ends) - 1
        probe = self.conversation.turns[turn].probe
        assert probe is not None, "only questions are answered by the model"
        said = answer.text.strip()
        back = self.ends[turn] - self.ends[probe.said_in]
        right = probe.is_answered_by(said)
        self.outcomes.append(QuestionResult(turn, right, turn - probe.said_in, back, probe.kind, probe.steps, said))


def converse(
    engine: Engine,
    text: ChatText,
    conversations: Sequence[tuple[int, Conversation]],
    max_tokens: int,
    tell: Callable[[float], None] = lambda done: None,
) -> list[Answered]:
    """Hold numbered conversations, one per row of `engine`, and return how the questions were answered.

    `tell` is told how many are done, in parts too, after each question. Raises the error of an answer that fails.
    """
    rows = [_Row(number, conversation) for number, conversation in conversations]
    for index in range(len(rows)):
        engine.reset(index)
    counts = [len(row.conversation.probes) for row in rows]
    for number in range(1, max(counts) + 1):
        asking: dict[str, _Row] = {}
        asked: list[tuple[Request, AnswerText]] = []
        for index, row in enumerate(rows):
            if question := row.next_question(text):
                name = f"{row.number}/{len(row.ends) - 1}"
                asking[name] = row
                request = Request(name, question.ids, max_tokens=max_tokens, stop_ids=text.stop_ids, row=index)
                asked.append((request, text.answer(question)))
        for name, event in stream_answers(engine, asked):
            if isinstance(event, Answer):
                asking[name].take(event, max_tokens)
        tell(len(rows) * number / max(counts))
    return [
        Answered(row.number, row.tokens, count - len(row.outcomes), tuple(row.outcomes))
        for row, count in zip(rows, counts, strict=True)
    ]
