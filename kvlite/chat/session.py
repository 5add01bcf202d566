"""A conversation with its messages: asking, asking again, taking back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from kvlite.chat.session_files import ChatMessage
from kvlite.errors import UsageError
from kvlite.llm.answer import SEEDS, Answer, AnswerSettings
from kvlite.llm.conversation import ROW, Conversation
from kvlite.memory.host import available_bytes
from kvlite.text.messages import checked

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.memory.counts import KVCounts
    from kvlite.text.stream import Piece
    from kvlite.text.template import ChatText

_LOOKED_AT = 2400  # characters of an answer in which a loop is looked for
MAX_CHECKPOINT_BYTES = 10**9  # of host memory, all checkpoints together, and at most a tenth of what is free


class Session:
    """One conversation; `ask` streams an answer, the other methods are called between two answers."""

    def __init__(self, engine: Engine, text: ChatText, settings: AnswerSettings, system: str | None = None) -> None:
        self.settings = settings
        self.messages: list[ChatMessage] = []
        self.last: Answer | None = None  # the newest answer, also one taken back
        self.unsent: str | None = None  # the last question, where it got no answer
        self.has_looped = False  # the newest answer went round in circles, and was stopped
        self._broken_off: list[ChatMessage] | None = None  # the chat with an answer that got no end
        self._engine = engine
        self._text = text
        self.conversation = Conversation(engine, text, min(MAX_CHECKPOINT_BYTES, available_bytes() // 10))
        self.set_system(system)

    @property
    def system(self) -> str | None:
        """The system prompt; None without one."""
        return next((message["content"] for message in self.messages[:1] if message["role"] == "system"), None)

    @property
    def num_turns(self) -> int:
        return sum(message["role"] == "user" for message in self.messages)

    @property
    def checkpoint_peak_bytes(self) -> int:
        """The most host memory that all checkpoints ever took."""
        return self.conversation.checkpoint_peak_bytes

    def counts(self) -> KVCounts:
        """Return the counts of the row's slots."""
        return self._engine.rows.counts(ROW)

    def ask(self, user: str) -> Generator[Piece | Answer]:
        """Stream the answer to `user`, and at the end the Answer. The text of a cancelled answer stays in the chat.

        When the turn fails, or is cancelled before any text, the chat is as before and `unsent` holds the question.
        """
        if not user.strip():
            raise UsageError("the message is empty; write something to send")
        asked = [*self.messages, {"role": "user", "content": user}]
        events = self.conversation.ask(asked, self.settings)
        self.unsent = user
        yield from self._answered(asked, events)

    def go_on(self) -> Generator[Piece | Answer]:
        """Stream more of the last answer, and at the end the Answer that is more.

        Raises UsageError where there is none, or it ended by itself.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise UsageError("there is no answer to go on with; ask something first")
        if self.messages[-1].get("finish_reason") == "stop":
            raise UsageError("the answer ended by itself; ask for more in words of your own")
        before = self.messages[-1]["content"]
        return self._answered(self.messages[:-1], self.conversation.go_on(self.messages, self.settings), before)

    def _answered(
        self, asked: Sequence[ChatMessage], events: Generator[Piece | Answer], before: str = ""
    ) -> Generator[Piece | Answer]:
        """Pass on the events of the answer to `asked`, and keep it; one that goes round in circles is stopped.

        `before` is what was said of it before.
        """
        answer: Answer | None = None
        said, whole, self.has_looped = "", "", False
        try:
            with closing(events):
                for event in events:
                    if isinstance(event, Answer):
                        self.last = answer = event
                    else:
                        said, whole = (said + event.text)[-_LOOKED_AT:], whole + event.text * (not event.thinking)
                        if not self.has_looped and goes_round(said):
                            self.has_looped = True
                            self.cancel()
                    yield event
        finally:
            self._broken_off = [*asked, _said(before + whole, "cancelled")] if answer is None and whole else None
            if answer is not None and self.conversation.last is answer:
                reason = str(answer.finish_reason)
                self.messages = [*asked, _said(before + answer.text, reason)]
                self.unsent = None

    def keep_what_was_said(self) -> None:
        """Let an answer that was broken off stay in the chat as far as it got."""
        if self._broken_off is not None:
            self.messages, self.unsent, self._broken_off = self._broken_off, None, None

    @property
    def thinking(self) -> str:
        """The thinking that was asked for: `auto`, `on` or `off`."""
        return self._text.think

    def think(self, how: str) -> str | None:
        """Let the model think before it answers: `auto`, `on` or `off`. Gives the reason where that changes nothing."""
        self._text.think = how
        return self._text.thinks_anyway

    def cancel(self) -> None:
        """Stop the answer being generated at its next token. Safe to call from a signal handler."""
        self.conversation.cancel()

    def retry(self) -> Generator[Piece | Answer]:
        """Ask the last question again, from the same state and with the next seed."""
        user = self.undo() if self.unsent is None else self.unsent
        sampling = self.settings.sampling
        self.settings = replace(self.settings, sampling=replace(sampling, seed=(sampling.seed + 1) % SEEDS))
        return self.ask(user)

    @property
    def retries_alike(self) -> bool:
        """True where `retry` asks from the very state that was there: else other tokens may be forgotten then."""
        asked = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        before = self.messages[: asked[-1]] if asked and self.unsent is None else []
        return not self.counts().tokens_evicted or self.conversation.goes_back_to(before)

    def undo(self, turns: int = 1) -> str:
        """Take back the last turns and return the first question taken back; raises UsageError if there are fewer."""
        asked = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise UsageError("the conversation has no turn yet; ask something first")
        if not 1 <= turns <= len(asked):
            raise UsageError(f"cannot take back {turns} turns; the conversation has {len(asked)}")
        start = asked[-turns]
        user = self.messages[start]["content"]
        del self.messages[start:]
        self.conversation.go_back(tuple(checked(self.messages)) if start else ())
        self.unsent = None
        return user

    def set_system(self, system: str | None) -> None:
        """Start over under another system prompt, or none. Raises BudgetTooSmall where the cache cannot hold it."""
        self.check_system(system)
        self.load([] if system is None else [{"role": "system", "content": system}])

    def check_system(self, system: str | None) -> None:
        """Raise BudgetTooSmall where the cache cannot hold a system prompt."""
        if system is not None and self.settings.pin_system:
            question = {"role": "user", "content": "?"}  # many templates render no system prompt alone
            self._engine.rows.check_pins(
                self._text.conversation([{"role": "system", "content": system}, question]).pins
            )

    def load(self, messages: Sequence[ChatMessage], pinned: Iterable[int] = ()) -> None:
        """Replace the conversation; all of it is fed with the next question, the turns `pinned` to stay."""
        self.messages = list(messages)
        self.last = self.unsent = None
        self.conversation.go_back(())  # which forgets the pins, too
        self.conversation.pinned = {number for number in pinned if 1 <= number <= self.num_turns}


def _said(text: str, reason: str) -> ChatMessage:
    return {"role": "assistant", "content": text, "finish_reason": reason}


def goes_round(text: str) -> bool:
    """True where a text ends in the same 20 to 600 characters four times, or in fewer over and over 400 characters."""
    tail = text[-20:]
    before = text.rfind(tail, 0, len(text) - 1)
    if len(tail) < 20 or before < 0:
        return False
    period = len(text) - len(tail) - before
    times = 4 if period >= 20 else 400 // period + 1
    return text.endswith(text[-period:] * times)
