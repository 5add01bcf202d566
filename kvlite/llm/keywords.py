"""Keyword arguments become options: unknown names and values of another kind are refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_origin, get_type_hints

from kvlite.errors import UsageError
from kvlite.flags import Flag

Options = TypeVar("Options")


def options_from(kind: type[Options], given: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> Options:
    """The options dataclass `kind` filled with `given`, which may name none of the fields `without`.

    A single text stands for several where a field takes several. Raises UsageError on a name that is no field's, with
    the nearest one, and on a value that the field does not take.
    """
    hints = get_type_hints(kind)
    flags = {field.name: field.metadata["flag"] for field in fields(kind) if field.name not in without}  # type: ignore[arg-type]
    for name in given:
        if name not in flags:
            close = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(flags)}"
            raise UsageError(f"there is no option {name!r}; {hint}")
    return kind(**{name: _value(name, value, hints[name], flags[name]) for name, value in given.items()})


def _value(name: str, value: Any, hint: Any, flag: Flag) -> Any:
    from pydantic import TypeAdapter, ValidationError  # commands need neither

    if get_origin(hint) is tuple and isinstance(value, (str, list)):
        value = (value,) if isinstance(value, str) else tuple(value)
    try:
        value = TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"{name} is {value!r}; {error.errors()[0]['msg'].replace('Input', 'it', 1)}") from error
    if flag.min is not None and value is not None and value < flag.min:
        raise UsageError(f"{name} is {value}; give at least {flag.min}")
    try:
        return value if flag.parse is None or value is None else flag.parse(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
