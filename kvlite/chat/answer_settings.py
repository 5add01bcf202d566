"""The settings of answers that a user may change between two turns: sampling, and the longest answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvlite.errors import UsageError
from kvlite.llm.answer import AnswerSettings


def changed(settings: AnswerSettings, key: str, value: str) -> AnswerSettings:
    """Change one of `settings`; raises UsageError on an unknown key or a bad value."""
    key = key.strip().replace("-", "_").lower()
    if key not in _READ:
        raise UsageError(f"there is no setting {key!r}; settings are {', '.join(_READ)}")
    number = _READ[key](key, value.strip())
    if key == "max_tokens":
        return replace(settings, max_tokens=number)
    return replace(settings, sampling=replace(settings.sampling, **{key: number}))


def listed(settings: AnswerSettings) -> list[tuple[str, str]]:
    """List the name and present value of every setting, as `/set` shows them."""
    values = {key: getattr(settings.sampling, key) for key in _READ if key != "max_tokens"}
    limit = "none" if settings.max_tokens is None else str(settings.max_tokens)
    return [(key, str(value)) for key, value in values.items()] + [("max_tokens", limit)]


def _real(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{key} is {value!r}; give a number") from None


def _whole(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{key} is {value!r}; give a whole number") from None


def _limit(key: str, value: str) -> int | None:
    return None if value.lower() == "none" else _whole(key, value)


_READ: dict[str, Callable[[str, str], Any]] = {
    "temperature": _real,
    "top_p": _real,
    "top_k": _whole,
    "min_p": _real,
    "repetition_penalty": _real,
    "seed": _whole,
    "max_tokens": _limit,
}
