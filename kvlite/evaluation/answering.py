"""Conversations held with a model, several at a time as rows of one engine; its own answers stay in the cache.

Answers are greedy. Ids once fed are never rendered again: each turn feeds what the template writes behind an answer,
as in `kvlite chat`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvlite.engine.request import Completion, FinishReason, Request, Token
from kvlite.errors import ContextFull
from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.outcome import Answered, Outcome
from kvlite.evaluation.suites import first_message

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.text.stream import AnswerText
    from kvlite.text.template import ChatText, Encoded


@dataclass(slots=True)
class _Row:
    """A conversation on its way: what was fed, where each message of the user ended, how the last answer ended."""

    index: int
    number: int
    conversation: Conversation
    tokens: int = 0
    ends: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ended: bool = True
    thinking: bool = False
    is_over: bool = False

    def encoded(self, text: ChatText, turn: int) -> Encoded:
        if turn == 0:
            return text.conversation([first_message(self.conversation)])
        return text.next_turn(self.conversation.turns[turn].user, ended=self.ended, thinking=self.thinking)

    def take(self, prompt: Encoded, answer: AnswerText, completion: Completion, max_tokens: int) -> None:
        """Record a turn; one that the model's window did not hold ends the conversation."""
        if completion.error is not None and not isinstance(completion.error, ContextFull):
            raise completion.error
        reason = completion.finish_reason
        is_cut = reason is FinishReason.LENGTH and len(completion.ids) < max_tokens
        if completion.error is not None or is_cut:
            self.is_over = True
            return
        self.ends.append(self.tokens + len(prompt.ids))
        self.tokens = self.ends[-1] + len(completion.ids)
        self.ended = reason is FinishReason.STOP and not answer.stopped
        self.thinking = answer.is_thinking
        turn = len(self.ends) - 1
        probe = self.conversation.turns[turn].probe
        if probe is not None:
            said = answer.text.strip()
            back = self.ends[turn] - self.ends[probe.said_in]
            right = probe.is_answered_by(said)
            self.outcomes.append(Outcome(turn, right, turn - probe.said_in, back, probe.kind, probe.steps, said))

    def answered(self) -> Answered:
        unreached = sum(1 for _ in self.conversation.probes) - len(self.outcomes)
        return Answered(self.number, self.tokens, unreached, tuple(self.outcomes))


def converse(
    engine: Engine, text: ChatText, conversations: Sequence[tuple[int, Conversation]], max_tokens: int
) -> Generator[float, None, list[Answered]]:
    """Hold numbered conversations, one per row of `engine`, and return how the questions were answered.

    Yields the share of the turns that are done, after each round of turns. Raises the error of a turn that fails.
    """
    rows = [_Row(index, number, conversation) for index, (number, conversation) in enumerate(conversations)]
    for row in rows:
        engine.reset(row.index)
    longest = max(len(row.conversation.turns) for row in rows)
    for turn in range(longest):
        going = [row for row in rows if not row.is_over and turn < len(row.conversation.turns)]
        _round(engine, text, going, turn, max_tokens)
        yield (turn + 1) / longest
    return [row.answered() for row in rows]


def _round(engine: Engine, text: ChatText, rows: Sequence[_Row], turn: int, max_tokens: int) -> None:
    """One turn of every row."""
    asked = {f"{row.number}/{turn}": (row, row.encoded(text, turn)) for row in rows}
    answers = {name: text.answer(prompt) for name, (_, prompt) in asked.items()}
    requests = [
        Request(name, prompt.ids, max_tokens=max_tokens, stop_ids=text.stop_ids, row=row.index)
        for name, (row, prompt) in asked.items()
    ]
    for event in engine.run(requests):
        answer = answers[event.request_id]
        if isinstance(event, Token):
            if not answer.stopped:
                answer.push(event.id)
                if answer.stopped:
                    engine.cancel(event.request_id, FinishReason.STOP)
        else:
            answer.finish()
            row, prompt = asked[event.request_id]
            row.take(prompt, answer, event, max_tokens)
