"""A policy with its settings as text: `heavy-hitter:decay=0.999,pooled=5`. Knows no policy; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from kvlite.errors import UsageError

_EXPECTED: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "none"}

_WORDS: Mapping[Any, tuple[object, ...]] = {bool: (True, False), NoneType: (None,)}


def split_policies(text: str) -> list[str]:
    """The policies of a list with commas.

    A part with `=` and no `:` before it is one more setting of the policy before, where that has settings:
    `h2o,window:sinks=8,heavy-hitter:decay=0.9,pooled=5` names three.
    """
    found: list[str] = []
    for part in text.split(","):
        is_setting = "=" in part and ":" not in part.partition("=")[0]
        if is_setting and found and ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def split_settings(text: str) -> tuple[str, dict[str, str]]:
    """The name and the settings of a policy, as written. Raises UsageError on what is not NAME:SETTING=VALUE,..."""
    name, colon, rest = text.partition(":")
    name = name.strip()
    if "=" in name:
        raise UsageError(f"KV policy {text!r} has settings and no name; give both, as in window:sinks=8")
    settings: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, value = (word.strip() for word in part.partition("="))
        if not (setting and equals and value):
            raise UsageError(f"KV policy {name!r}: {part.strip()!r} is no setting=value, as in window:sinks=8")
        if setting in settings:
            raise UsageError(f"KV policy {name!r}: {setting} is given twice; leave out one of them")
        settings[setting] = value
    return name, settings


def read_value(kind: Any, text: str) -> object:
    """The value of type `kind` that `text` spells: a number, true, false, none, one of a Literal's words, or text.

    Raises ValueError, saying what is expected.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for one in kinds:
        try:
            return _read(one, text)
        except ValueError:
            continue
    raise ValueError(" or ".join(_expected(one) for one in kinds))


def write_value(value: object) -> str:
    """The text that `read_value` reads as `value`."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def write_settings(settings: Mapping[str, object], separator: str = ",") -> str:
    """Settings as they stand behind a policy's name, or with another `separator` for reading."""
    return separator.join(f"{name}={write_value(value)}" for name, value in settings.items())


def _read(kind: Any, text: str) -> object:
    if kind in (int, float, str):
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(text)
        return value
    values = get_args(kind) if get_origin(kind) is Literal else _WORDS.get(kind, ())
    for value in values:
        if text == write_value(value):
            return value
    raise ValueError(text)


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return _EXPECTED.get(kind, "a value that only Python can give")
