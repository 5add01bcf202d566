"""One answer: the engine's tokens become pieces of text, as they come. Turns of a chat and `run` both go this way."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.engine.request import Completion, FinishReason, Request, Token
from kvlite.record.schema import RequestReport

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.text.stream import AnswerText, Piece


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    `ended_itself`: the model ended its turn, no stop string or limit did; `is_thinking`: it was cut off while thinking.
    """

    text: str
    thinking: str
    finish_reason: FinishReason
    ended_itself: bool
    is_thinking: bool
    completion: Completion

    def report(self, seed: int) -> RequestReport:
        """The answer's entry in a run record."""
        completion = self.completion
        return RequestReport(
            id=completion.request_id,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=len(completion.ids),
            ttft_s=completion.timing.ttft_s,
            tok_s=completion.timing.tok_s,
            kv_peak_bytes=completion.kv.peak_bytes,
            tokens_evicted=completion.evicted,
            seed=seed,
            finish_reason=str(self.finish_reason),
        )


def stream_answer(engine: Engine, request: Request, decoder: AnswerText) -> Generator[Piece | Answer]:
    """Run one request: pieces of text as they are decoded, at the end the Answer.

    Raises the request's own error after the pieces that came before it.
    """
    completion = None
    for event in engine.run([request]):
        if isinstance(event, Completion):
            completion = event
        elif isinstance(event, Token) and not decoder.stopped:
            yield from decoder.push(event.id)
            if decoder.stopped:
                engine.cancel(request.id, FinishReason.STOP)
    assert completion is not None, "the engine ends every request with a Completion"
    yield from decoder.finish()
    if completion.error is not None:
        raise completion.error
    reason = FinishReason.STOP if decoder.stopped else completion.finish_reason
    yield Answer(
        text=decoder.text,
        thinking=decoder.thinking,
        finish_reason=reason,
        ended_itself=reason is FinishReason.STOP and not decoder.stopped,
        is_thinking=decoder.is_thinking,
        completion=completion,
    )
