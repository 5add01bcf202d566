"""Parameters of which a few run by default and all under the marker `matrix`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def but_few(values: Iterable[Any], *few: Any) -> list[Any]:
    """The values as parameters, all but these `few` marked `matrix`."""
    values = list(values)
    assert all(value in values for value in few), f"{few} are not all among {values}"
    return [value if value in few else _in_matrix(value) for value in values]


def _in_matrix(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.matrix)
