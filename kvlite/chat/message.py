"""Messages of a chat, in the forms of a chat template and of a session file."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


def readable(text: str) -> str:
    """Replace each lone surrogate, a byte typed or stored that is not UTF-8, by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message; `finish_reason` tells the end of an assistant's message, None for the other roles."""

    role: str
    content: str
    finish_reason: str | None = None

    def for_template(self) -> dict[str, str]:
        """Return the two keys that every chat template reads."""
        return {"role": self.role, "content": self.content}

    def for_file(self) -> dict[str, str]:
        """Return the message as one line of a session file."""
        ending = {} if self.finish_reason is None else {"finish_reason": self.finish_reason}
        return self.for_template() | ending
