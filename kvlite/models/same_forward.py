"""Recognises code by a hash of its source: transformers makes most families by copying a few classes.

A patch stores the hash of the forward method that it was written from, so it does not depend on what is installed.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from hashlib import sha256
from textwrap import dedent
from types import FunctionType
from typing import Any


@cache
def code_hash(function: Any) -> str | None:
    """12 hex digits for the code of `function` and of the functions of its module that it calls.

    Its name, decorators, annotations, comments and docstring do not count. None where there is no Python source.
    """
    found: dict[FunctionType, str] = {}
    waiting = [function]
    while waiting:
        here = inspect.unwrap(waiting.pop())
        if here in found:
            continue
        try:
            found[here] = _normalised(here)
        except (OSError, TypeError, SyntaxError):
            return None
        beside = here.__globals__
        called = [beside[name] for name in sorted(here.__code__.co_names) if isinstance(beside.get(name), FunctionType)]
        waiting += [other for other in called if other.__module__ == here.__module__]
    return sha256("\n".join(found.values()).encode()).hexdigest()[:12]


def _normalised(function: FunctionType) -> str:
    (tree,) = ast.parse(dedent(inspect.getsource(function))).body
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError("not a plain function")
    tree.name, tree.decorator_list, tree.returns = "f", [], None
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if ast.get_docstring(tree, clean=False) is not None:
        del tree.body[0]
    return ast.unparse(tree)
