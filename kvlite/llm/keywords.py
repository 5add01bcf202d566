"""Keyword arguments become options: unknown names and values of another kind are refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kvlite.errors import UsageError
from kvlite.flags import Flag

Options = TypeVar("Options")


def options_from(kind: type[Options], given: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> Options:
    """The options dataclass `kind` filled with `given`, which may name none of the fields `without`.

    A single text stands for several where a field takes several. Raises UsageError on a name that is no field's, with
    the nearest one, and on a value that the field does not take.
    """
    hints = get_type_hints(kind)
    names = {field.name: field.metadata.get("flag") for field in fields(kind) if field.name not in without}  # type: ignore[arg-type]
    return kind(**{name: _value(name, value, names, hints) for name, value in given.items()})


def _value(name: str, value: Any, names: Mapping[str, Flag | None], hints: Mapping[str, Any]) -> Any:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise UsageError(f"there is no option {name!r}; {hint}")
    hint, flag = hints[name], names[name]
    if get_origin(hint) is tuple:
        value = (value,) if isinstance(value, str) else tuple(value)
    if not _is(value, hint):
        raise UsageError(f"{name} is {value!r}; give {_words(hint)}")
    if flag is None or value is None:
        return value
    if flag.min is not None and value < flag.min:
        raise UsageError(f"{name} is {value}; give at least {flag.min}")
    try:
        return flag.parse(value) if flag.parse is not None else value
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def _is(value: object, hint: Any) -> bool:
    """True where `value` is of the kind that an annotation names."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_is(value, each) for each in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return all(_is(each, get_args(hint)[0]) for each in value)  # type: ignore[attr-defined]
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _words(hint: Any) -> str:
    """An annotation for reading."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in get_args(hint))
    if origin is Literal:
        return ", ".join(repr(each) for each in get_args(hint))
    if origin is tuple:
        return f"{_words(get_args(hint)[0])}, or several"
    return {NoneType: "None", str: "text", bool: "True or False", int: "a whole number", float: "a number"}[hint]
