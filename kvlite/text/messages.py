"""Check conversations, lists of roles and contents, for the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvlite.errors import UsageError

_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One message; the first `system_chars` characters of `content` belong to the system prompt."""

    role: str
    content: str
    system_chars: int = 0


def checked(messages: Sequence[object]) -> list[Message]:
    """Check messages `{"role", "content"}`; content is a string, or a list of text parts, which are joined.

    Raises UsageError on anything else, naming the message by its number.
    """
    if not messages:
        raise UsageError("the conversation has no messages; give at least one")
    checked = [_checked(number, message) for number, message in enumerate(messages, 1)]
    for index, message in enumerate(checked):
        if message.role != "system":
            break
        checked[index] = Message("system", message.content, len(message.content))
    return checked


def _checked(number: int, message: object) -> Message:
    if not isinstance(message, Mapping):
        raise UsageError(f"message {number} is {type(message).__name__}; give an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise UsageError(f"message {number} has role {role!r}; the roles are {', '.join(_ROLES)}")
    content = _content(number, message.get("content"))
    return Message("system" if role == "developer" else role, content)  # OpenAI's newer word for the same thing


def _content(number: int, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageError(f"message {number} has content {content!r:.40}; give a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise UsageError(f"message {number} has a content part {kind!r:.40}; kvlite takes text parts only")
        texts.append(text)
    return "".join(texts)


def with_system_folded(messages: Sequence[Message]) -> list[Message]:
    """Put each system prompt in front of the user message that follows it."""
    folded: list[Message] = []
    waiting = ""
    pinned = 0
    for message in messages:
        if message.role == "system":
            waiting = f"{waiting}\n\n{message.content}" if waiting else message.content
            pinned = len(waiting) if message.system_chars else pinned
        elif message.role == "user" and waiting:
            folded.append(Message("user", f"{waiting}\n\n{message.content}", pinned))
            waiting, pinned = "", 0
        else:
            folded.append(message)
    if waiting:
        folded.append(Message("user", waiting, pinned))
    return folded
