"""Whether two functions do the same, instruction for instruction: transformers makes most families by copying code."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import nn


def behaves_as(kind: type[nn.Module], source: type[nn.Module]) -> bool:
    """Whether the forward method of `kind` has the instructions of that of `source`."""
    return same(kind.forward, source.forward)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two functions have the same instructions; one that is missing equals only another that is."""
    if ours is theirs:
        return True
    found, expected = (
        None if function is None else _instructions(inspect.unwrap(function)) for function in (ours, theirs)
    )
    return found is not None and found == expected


def _instructions(function: Any) -> tuple[object, ...] | None:
    """What a function does, without its name, its place and its docstring; None of what is no function."""
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    constants = tuple(constant for constant in code.co_consts if constant != function.__doc__)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants, function.__defaults__
