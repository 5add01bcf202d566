"""A conversation in one row of an engine: what extends it is fed alone, anything else is fed as a whole.

Ids that were fed are never rendered again: a turn feeds only the template's suffix for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from kvlite.engine.request import FinishReason, Guide, Request
from kvlite.errors import UsageError
from kvlite.llm.answer import Answer, AnswerSettings, stream_answer
from kvlite.text.messages import Message, checked
from kvlite.text.stream import Part
from kvlite.text.template import Encoded

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.engine.rows import RowSnapshot
    from kvlite.text.stream import AnswerText, Piece
    from kvlite.text.template import ChatText

ROW = 0
MAX_CHECKPOINTS = 8
_GOING_ON = 1 << 20  # turns on, so that what goes on is not drawn as the answer began


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """The row as it was before a turn, on the host, the messages it held and the last answer among them."""

    messages: tuple[Message, ...]
    last: Answer
    snapshot: RowSnapshot
    starts: list[int | None]
    pinned: frozenset[int]


class Conversation:
    """Answers messages from the first row of `engine`, which always holds what was said last, or nothing.

    Before a turn the row is copied to the host, the latest few times within `checkpoint_bytes`, so that the row can go
    back to where it was. `checkpoint_peak_bytes` is the most that all copies ever took.
    """

    def __init__(self, engine: Engine, text: ChatText, checkpoint_bytes: int = 0) -> None:
        self.last: Answer | None = None  # None: the row holds nothing
        self.checkpoint_peak_bytes = 0
        self._checkpoint_bytes = checkpoint_bytes
        self._checkpoints: deque[_Checkpoint] = deque()
        self._engine = engine
        self._text = text
        self._messages: tuple[Message, ...] = ()
        self.starts: list[int | None] = []
        """The places of the turns in the row; None of one that was fed together with others."""
        self.pinned: set[int] = set()
        """The turns, from 1, of which nothing more is evicted."""
        self._guided: tuple[Answer, Guide] | None = None  # the last answer, where a grammar was followed, and how far
        self._num_requests = 0
        self.request: Request | None = None
        """The last one the engine was given."""

    @property
    def checkpoint_bytes(self) -> int:
        """Host memory that the copies of the row take now."""
        return sum(checkpoint.snapshot.num_bytes for checkpoint in self._checkpoints)

    def ask(self, messages: Sequence[object], settings: AnswerSettings) -> Generator[Piece | Answer]:
        """Stream the answer to `messages`, at the end the Answer; the last alone is fed where the row holds the others.

        The row holds them all afterwards, a cancelled answer as far as it got; where an answer fails, is given up, or
        is cancelled before any text, the row goes back. Raises UsageError, at once, on messages that are malformed.
        """
        turns = tuple(checked(messages))
        self.go_back(turns[:-1])
        last, asked = self.last, _questions(turns[:-1])
        pins: list[tuple[int, int]] = []
        starts: list[int | None]
        if last is not None and turns[-1].role == "user":
            starts = [*self.starts, len(self._engine.rows.said(ROW))]
            encoded = self._text.next_turn(turns[-1].content, ended=last.ended_itself, thinking=last.is_thinking)
        else:
            encoded = self._text.conversation(messages)
            self.forget()
            starts = [None] * (asked + 1)
            if self.pinned:
                pins = self._pinned_in(pairwise(self._text.turn_starts(_plain(turns))))
        self._num_requests += 1
        self._take_checkpoint()
        self.starts = starts
        request = settings.request(self._request_id, encoded, self._text, row=ROW, number=asked)
        guide = None if request.guide is None else request.guide()
        self.request = request = replace(request, pins=(*request.pins, *pins))
        return self._stream(turns, request, self._text.answer(encoded, settings.stop, settings.min_tokens), guide)

    def go_on(self, messages: Sequence[object], settings: AnswerSettings) -> Generator[Piece | Answer]:
        """Stream more of the answer that `messages` end in, at the end the Answer that is more.

        The row goes on where it is; where it does not hold the messages, they are fed as a whole. Raises UsageError
        where a grammar is followed and it is not known how far the answer got in it.
        """
        turns = tuple(checked(messages))
        last, guide = self.last, None
        if settings.grammar is not None:
            if self._guided is None or self._guided[0] is not last or not self.holds(messages):
                raise UsageError("how far that answer got in its grammar is not known any more; ask again")
            guide = self._guided[1]
        token = self._engine.rows.take_back(ROW) if self.holds(messages) else None
        if last is None or token is None:
            return self.ask(messages, settings)
        self._num_requests += 1
        encoded = Encoded((token,), begins=Part.THINKING if last.is_thinking else Part.ANSWER)
        number = _questions(turns) + _GOING_ON
        self.request = settings.request(self._request_id, encoded, self._text, row=ROW, number=number)
        decoder = self._text.answer(encoded, settings.stop, settings.min_tokens)
        decoder.follow(token)
        return self._stream(turns, self.request, decoder, guide)

    def cancel(self) -> None:
        """Stop the answer being generated at its next token. Safe to call from a signal handler."""
        self._engine.cancel(self._request_id)

    def forget(self) -> None:
        """Empty the row."""
        self._engine.rows.reset(ROW)
        self._messages, self.last, self.starts = (), None, []

    def holds(self, messages: Sequence[object]) -> bool:
        """True where the row holds these messages and nothing else."""
        return self.last is not None and self._messages == tuple(checked(messages))

    def goes_back_to(self, messages: Sequence[object]) -> bool:
        """True where the row can be as it was behind these messages: by a copy, or because there are none."""
        turns = tuple(checked(messages)) if messages else ()
        return not turns or any(checkpoint.messages == turns for checkpoint in self._checkpoints)

    def resume(self, messages: Sequence[object], last: Answer, starts: Sequence[int | None], pinned: set[int]) -> None:
        """Go on from a row that was put back: it holds `messages`, the last of which is the answer `last`."""
        self._messages, self.last = tuple(checked(messages)), last
        self.starts, self.pinned = [*starts], pinned

    def turn_spans(self) -> list[tuple[int, int]]:
        """The positions of each turn in the row, from its question to the next; none where the row holds nothing."""
        if not self.starts:
            return []
        said = _plain(self._messages)
        if None in self.starts and said:
            together = self.starts.count(None)
            places = [index for index, message in enumerate(said) if message["role"] == "user"]
            found = self._text.turn_starts(said[: places[together - 1] + 1])
            self.starts = [*found, *self.starts[together:]]
        ends = [*self.starts[1:], len(self._engine.rows.said(ROW))]
        return [(start, end) for start, end in zip(self.starts, ends, strict=True) if start is not None and end]

    def pin(self, number: int) -> None:
        """Evict nothing more of a turn. Raises UsageError where there is none, BudgetTooSmall where it has no room."""
        self._engine.rows.pin(ROW, [self._span(number)])
        self.pinned.add(number)

    def unpin(self, number: int) -> None:
        """Let a turn be evicted again, or not stay once it is fed. Raises UsageError where it is not pinned."""
        if not self.starts and number in self.pinned:
            self.pinned.discard(number)
            return
        span = self._span(number)
        if number not in self.pinned:
            pinned = ", ".join(map(str, sorted(self.pinned)))
            raise UsageError(f"turn {number} is not pinned; " + (f"pinned: {pinned}" if pinned else "no turn is"))
        self._engine.rows.pin(ROW, [span], unpins=True)
        self.pinned.discard(number)

    def _span(self, number: int) -> tuple[int, int]:
        spans = self.turn_spans()
        if not 1 <= number <= len(spans):
            raise UsageError(f"there is no turn {number}; the cache has read {len(spans)}")
        return spans[number - 1]

    def _pinned_in(self, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        return [span for number, span in enumerate(spans, 1) if number in self.pinned]

    def drop_checkpoints(self) -> None:
        """Forget the copies of the row: its cache is another now."""
        self._checkpoints.clear()

    def go_back(self, messages: tuple[Message, ...]) -> None:
        """Make the row hold `messages`, by a checkpoint where it does not, or nothing: the next turn feeds all then."""
        if self.last is not None and self._messages == messages:
            return
        while self._checkpoints and len(self._checkpoints[-1].messages) > len(messages):
            self._checkpoints.pop()
        self._messages, self.last, self.starts = (), None, []
        self.pinned = {number for number in self.pinned if number <= _questions(messages)}
        if not self._checkpoints or self._checkpoints[-1].messages != messages:
            self.forget()
        else:
            checkpoint = self._checkpoints.pop()
            self._engine.rows.restore(ROW, checkpoint.snapshot)
            self._messages, self.last, self.starts = checkpoint.messages, checkpoint.last, checkpoint.starts
            if self.pinned | checkpoint.pinned:
                spans = self.turn_spans()
                pinned = self._pinned_in(spans)
                self._engine.rows.pin(ROW, [span for span in spans if span not in pinned], unpins=True)
                self._engine.rows.pin(ROW, pinned)

    def _take_checkpoint(self) -> None:
        if self.last is None or self._engine.rows.counts(ROW).live_bytes > self._checkpoint_bytes:
            return
        self._checkpoints.append(
            _Checkpoint(self._messages, self.last, self._engine.rows.snapshot(ROW), self.starts, frozenset(self.pinned))
        )
        sizes = [checkpoint.snapshot.num_bytes for checkpoint in self._checkpoints]
        self.checkpoint_peak_bytes = max(self.checkpoint_peak_bytes, sum(sizes))
        while len(sizes) > MAX_CHECKPOINTS or sum(sizes) > self._checkpoint_bytes:
            self._checkpoints.popleft()
            sizes.pop(0)

    @property
    def _request_id(self) -> str:
        return f"turn-{self._num_requests}"

    def _stream(
        self, turns: tuple[Message, ...], request: Request, decoder: AnswerText, guide: Guide | None
    ) -> Generator[Piece | Answer]:
        is_held = False
        if guide is not None:
            request = replace(request, guide=lambda: guide)
        try:
            with closing(stream_answer(self._engine, request, decoder)) as events:
                for event in events:
                    if isinstance(event, Answer):
                        is_held = bool(event.text) or event.finish_reason is not FinishReason.CANCELLED
                        self._messages, self.last = _answered(turns, event.text), event
                        self._guided = None if guide is None else (event, guide)
                    yield event
        finally:
            if not is_held:
                self.forget()
                self.go_back(turns[:-1])


def _questions(messages: Iterable[Message]) -> int:
    return sum(message.role == "user" for message in messages)


def _plain(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _answered(turns: tuple[Message, ...], answer: str) -> tuple[Message, ...]:
    """The messages with an answer, which goes on with the last of them where that is the assistant's."""
    if turns[-1].role == "assistant":
        return (*turns[:-1], Message("assistant", turns[-1].content + answer))
    return (*turns, Message("assistant", answer))
