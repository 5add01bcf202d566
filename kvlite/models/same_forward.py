"""Compares functions instruction for instruction: transformers makes most families by copying code."""

from __future__ import annotations

import inspect
import sys
from types import CodeType, FunctionType
from typing import Any

from torch import nn


def behaves_as(kind: type[nn.Module], source: type[nn.Module]) -> bool:
    """True if the forward method of `kind` has the instructions of that of `source`."""
    return same(kind.forward, source.forward)


def same(ours: Any, theirs: Any) -> bool:
    """True if two functions have the same instructions; one that is missing equals only another that is."""
    if ours is theirs:
        return True
    found, expected = (
        None if function is None else _instructions(inspect.unwrap(function)) for function in (ours, theirs)
    )
    return found is not None and found == expected


def _instructions(function: Any) -> tuple[object, ...] | None:
    """The instructions of a function, without its name, its place and its docstring; None of what is no function."""
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    constants = code.co_consts[1:] if _begins_with_docstring(code) else code.co_consts
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants, function.__defaults__


def _begins_with_docstring(code: CodeType) -> bool:
    """True if the first constant is the docstring, which decorators rewrite where a function keeps it."""
    if sys.version_info >= (3, 13):
        return bool(code.co_flags & inspect.CO_HAS_DOCSTRING)
    return bool(code.co_consts) and isinstance(code.co_consts[0], str)
