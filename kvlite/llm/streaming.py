"""An answer as pieces of text, which ends with the whole Answer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from kvlite.llm.answer import Answer

if TYPE_CHECKING:
    from kvlite.text.stream import Piece


class TextStream(Iterator[str]):
    """Pieces of an answer's text as they are generated; `answer` is there once they are through."""

    def __init__(self, events: Generator[Piece | Answer]) -> None:
        self.answer: Answer | None = None
        self._events = events

    def __next__(self) -> str:
        for event in self._events:
            if isinstance(event, Answer):
                self.answer = event
            elif not event.thinking:
                return event.text
        raise StopIteration

    def close(self) -> None:
        """Give the answer up; the conversation is then read anew with the next call."""
        self._events.close()
