"""Dialogues: turns of a user and an assistant, with marks on answers that need an earlier turn."""

from dataclasses import dataclass
from typing import TypedDict


class Message(TypedDict):
    """One message as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Recall:
    """A value asked back, and the turn in which it was last said (-1: the system prompt).

    `steps` is 2 where the question names a person by what they are to the user, and the value was told of their name.
    `kind` is that of the fact.
    """

    value: str
    said_in: int
    steps: int
    kind: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user and the assistant's answer; `recall` where the answer needs an earlier turn."""

    user: str
    assistant: str
    recall: Recall | None = None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A system prompt or None, and the turns."""

    system: str | None
    turns: tuple[Turn, ...]

    def messages(self) -> list[Message]:
        """The dialogue as chat messages."""
        messages = [Message(role="system", content=self.system)] if self.system else []
        for turn in self.turns:
            messages += [
                Message(role="user", content=turn.user),
                Message(role="assistant", content=turn.assistant),
            ]
        return messages
