"""Keyword arguments against the fields they fill: unknown names and values of another kind are refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from kvlite.engine.request import Sampling
from kvlite.errors import UsageError
from kvlite.options import ModelOptions


def model_options(model: str, given: Mapping[str, Any]) -> ModelOptions:
    """The options of `model`. Raises UsageError on a name or a value that is none of theirs."""
    _check(ModelOptions, given, "option")
    return ModelOptions(model=model, **given)


def sampling_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, where these are fields of Sampling; None is as good as not given. Raises UsageError where not."""
    wanted = {name: value for name, value in given.items() if value is not None}
    _check(Sampling, wanted, "sampling setting")
    Sampling(**wanted)  # only to have the ranges checked before anything is run
    return wanted


def _check(kind: type, given: Mapping[str, Any], called: str) -> None:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name != "model"]
    for name, value in given.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise UsageError(f"there is no {called} {name!r}; {hint}")
        if not _is(value, hints[name]):
            raise UsageError(f"{name} is {value!r}; give {_words(hints[name])}")


def _is(value: object, hint: Any) -> bool:
    """True where `value` is of the kind that an annotation names."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _is(value, get_args(hint)[0])
    if origin in (Union, UnionType):
        return any(_is(value, each) for each in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    """An annotation for reading."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _words(get_args(hint)[0])
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in get_args(hint))
    if origin is Literal:
        return ", ".join(repr(each) for each in get_args(hint))
    return {NoneType: "None", str: "text", bool: "True or False", int: "a whole number", float: "a number"}[hint]
