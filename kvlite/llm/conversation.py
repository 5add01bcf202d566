"""A conversation in one row of an engine: what extends it is fed alone, anything else is fed as a whole.

Ids that were fed are never rendered again: a turn feeds only the template's suffix for it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.engine.request import FinishReason
from kvlite.llm.answer import Answer, AnswerSettings, stream_answer
from kvlite.text.messages import Message, checked

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine, RowSnapshot
    from kvlite.text.stream import Piece
    from kvlite.text.template import ChatText, Encoded


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The row as it was before a turn, on the host, the messages it held and the last answer among them."""

    messages: tuple[Message, ...]
    last: Answer
    snapshot: RowSnapshot


class Conversation:
    """Answers messages from row `row` of `engine`, which always holds what was said last, or nothing."""

    def __init__(self, engine: Engine, text: ChatText, row: int = 0) -> None:
        self._engine = engine
        self._text = text
        self._row = row
        self._messages: tuple[Message, ...] = ()
        self._last: Answer | None = None  # None: the row holds nothing
        self._num_requests = 0

    @property
    def is_empty(self) -> bool:
        """True where the row holds nothing, so that the next messages are fed as a whole."""
        return self._last is None

    def encode(self, messages: Sequence[object]) -> Encoded:
        """The ids to feed for an answer to `messages`: the last one alone where the row holds those before it.

        Forgets what the row holds where it does not. Raises UsageError on messages that are malformed.
        """
        turns = tuple(checked(messages))
        last = self._last
        if last is not None and turns[-1].role == "user" and turns[:-1] == self._messages:
            return self._text.next_turn(turns[-1].content, ended=last.ended_itself, thinking=last.is_thinking)
        encoded = self._text.conversation(messages)
        self.forget()
        return encoded

    def stream(
        self, messages: Sequence[object], encoded: Encoded, settings: AnswerSettings
    ) -> Generator[Piece | Answer]:
        """Stream the answer to `messages`, of which `encoded` is fed; at the end the Answer, which the row then holds.

        Where it fails, or is given up before its end, the row is forgotten. A cancelled answer stays, as far as it got.
        """
        self._num_requests += 1
        turns = tuple(checked(messages))
        asked = sum(turn.role == "user" for turn in turns[:-1])
        request = settings.request(self.request_id, encoded, self._text, row=self._row, number=asked)
        decoder = self._text.answer(encoded, stop=settings.stop)
        is_held = False
        try:
            with closing(stream_answer(self._engine, request, decoder)) as events:
                for event in events:
                    if isinstance(event, Answer):
                        is_held = bool(event.text) or event.finish_reason is not FinishReason.CANCELLED
                        self._messages, self._last = (*turns, Message("assistant", event.text)), event
                    yield event
        finally:
            if not is_held:
                self.forget()

    @property
    def request_id(self) -> str:
        """The id of the newest request, for the engine's `cancel`."""
        return f"turn-{self._num_requests}"

    def cancel(self) -> None:
        """Stop the answer being generated at its next token. Safe to call from a signal handler."""
        self._engine.cancel(self.request_id)

    def forget(self) -> None:
        """Empty the row."""
        self._engine.reset(self._row)
        self._messages, self._last = (), None

    def checkpoint(self) -> Checkpoint | None:
        """Copy the row to the host; None where it holds nothing."""
        if self._last is None:
            return None
        return Checkpoint(self._messages, self._last, self._engine.snapshot(self._row))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, which stays usable."""
        self._engine.restore(self._row, checkpoint.snapshot)
        self._messages, self._last = checkpoint.messages, checkpoint.last
