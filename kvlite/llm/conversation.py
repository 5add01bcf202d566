"""A conversation in one row of an engine: what extends it is fed alone, anything else is fed as a whole.

Ids that were fed are never rendered again: a turn feeds only the template's suffix for it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.engine.request import FinishReason, Request
from kvlite.llm.answer import Answer, AnswerSettings, stream_answer
from kvlite.text.messages import Message, checked

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine, RowSnapshot
    from kvlite.text.stream import AnswerText, Piece
    from kvlite.text.template import ChatText

ROW = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The row as it was before a turn, on the host, the messages it held and the last answer among them."""

    messages: tuple[Message, ...]
    last: Answer
    snapshot: RowSnapshot


class Conversation:
    """Answers messages from the first row of `engine`, which always holds what was said last, or nothing."""

    def __init__(self, engine: Engine, text: ChatText) -> None:
        self.last: Answer | None = None  # None: the row holds nothing
        self._engine = engine
        self._text = text
        self._messages: tuple[Message, ...] = ()
        self._num_requests = 0

    def ask(self, messages: Sequence[object], settings: AnswerSettings) -> Generator[Piece | Answer]:
        """Stream the answer to `messages`, at the end the Answer; the last alone is fed where the row holds the others.

        The row holds them all afterwards, a cancelled answer as far as it got; where an answer fails, is given up, or
        is cancelled before any text, the row is empty. Raises UsageError, at once, on messages that are malformed.
        """
        turns = tuple(checked(messages))
        last = self.last
        if last is not None and turns[-1].role == "user" and turns[:-1] == self._messages:
            encoded = self._text.next_turn(turns[-1].content, ended=last.ended_itself, thinking=last.is_thinking)
        else:
            encoded = self._text.conversation(messages)
            self.forget()
        self._num_requests += 1
        asked = sum(turn.role == "user" for turn in turns[:-1])
        request = settings.request(self._request_id, encoded, self._text, row=ROW, number=asked)
        return self._stream(turns, request, self._text.answer(encoded, stop=settings.stop))

    def cancel(self) -> None:
        """Stop the answer being generated at its next token. Safe to call from a signal handler."""
        self._engine.cancel(self._request_id)

    def forget(self) -> None:
        """Empty the row."""
        self._engine.reset(ROW)
        self._messages, self.last = (), None

    def checkpoint(self) -> Checkpoint | None:
        """Copy the row to the host; None where it holds nothing."""
        return None if self.last is None else Checkpoint(self._messages, self.last, self._engine.snapshot(ROW))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, which stays usable."""
        self._engine.restore(ROW, checkpoint.snapshot)
        self._messages, self.last = checkpoint.messages, checkpoint.last

    @property
    def _request_id(self) -> str:
        return f"turn-{self._num_requests}"

    def _stream(self, turns: tuple[Message, ...], request: Request, decoder: AnswerText) -> Generator[Piece | Answer]:
        is_held = False
        try:
            with closing(stream_answer(self._engine, request, decoder)) as events:
                for event in events:
                    if isinstance(event, Answer):
                        is_held = bool(event.text) or event.finish_reason is not FinishReason.CANCELLED
                        self._messages, self.last = (*turns, Message("assistant", event.text)), event
                    yield event
        finally:
            if not is_held:
                self.forget()
