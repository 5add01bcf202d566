"""What the user may change between two turns: how tokens are drawn and how long an answer gets."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvlite.engine.request import Sampling
from kvlite.errors import UsageError

DRAWN_SEEDS = 2**31  # short enough to read out and type again
DEFAULT_MAX_TOKENS = 8192  # a small model may go on for ever


@dataclass(frozen=True, slots=True)
class Settings:
    """Sampling and limits of the turns to come; `max_tokens` None lets the model go on until it ends its answer."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    pin_system: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; give at least 1, or none for no limit")

    @classmethod
    def of(cls, model: Sampling, given: Mapping[str, Any], **limits: Any) -> Settings:
        """What the user gave over what the model asks for; a seed nobody gave is drawn, so that it can be told."""
        sampling = replace(model, **given)
        if "seed" not in given and not sampling.is_greedy:
            sampling = replace(sampling, seed=secrets.randbelow(DRAWN_SEEDS))
        return cls(sampling=sampling, **limits)

    def changed(self, key: str, value: str) -> Settings:
        """These settings with one changed; raises UsageError on an unknown key or a bad value."""
        key = key.strip().replace("-", "_").lower()
        if key not in _READ:
            raise UsageError(f"there is no setting {key!r}; settings are {', '.join(_READ)}")
        number = _READ[key](key, value.strip())
        if key == "max_tokens":
            return replace(self, max_tokens=number)
        return replace(self, sampling=replace(self.sampling, **{key: number}))

    def listed(self) -> list[tuple[str, str]]:
        """Name and present value of every setting, as `/set` shows them."""
        values = {key: getattr(self.sampling, key) for key in _READ if key != "max_tokens"}
        limit = "none" if self.max_tokens is None else str(self.max_tokens)
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
