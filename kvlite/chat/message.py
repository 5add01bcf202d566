"""What a conversation is made of, as it is shown to a chat template and written to a session file."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


def readable(text: str) -> str:
    """`text` with a question mark for each lone surrogate: bytes typed or stored that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `finish_reason` says how an assistant's message ended, None for the other roles."""

    role: str
    content: str
    finish_reason: str | None = None

    def for_template(self) -> dict[str, str]:
        """The two keys every chat template reads."""
        return {"role": self.role, "content": self.content}

    def for_file(self) -> dict[str, str]:
        """The message as one JSON line of a session file."""
        ending = {} if self.finish_reason is None else {"finish_reason": self.finish_reason}
        return self.for_template() | ending
