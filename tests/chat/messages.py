"""Messages as a session holds them and its file keeps them."""

from __future__ import annotations


def message(role: str, content: str, finish_reason: str | None = None) -> dict[str, str]:
    return {"role": role, "content": content} | ({} if finish_reason is None else {"finish_reason": finish_reason})
