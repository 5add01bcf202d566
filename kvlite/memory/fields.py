"""Typed, checked reads of a model's config.json. Knows types and ranges, not what a field means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvlite.errors import BrokenModel

_LARGEST = 2**40  # no dimension of a model comes near; keeps products finite
_COUNT = "a whole number above 0"


@dataclass(frozen=True, slots=True)
class Fields:
    """The values of a config.json object; every read raises BrokenModel with the field, the value and the expectation.

    A count that is absent and one that is null differ, as they do in transformers: absent means the class default.
    """

    values: Mapping[str, object]

    def count(self, *names: str, default: int | None = None) -> int:
        """A whole number above 0, under the first of `names` that is present; `default` when none is."""
        name = next((name for name in names if name in self.values), names[0])
        found = self.optional_count(name, default)
        if found is None and name in self.values:
            raise BrokenModel(f"config.json: {name} is None; expected {_COUNT}")
        if found is None:
            raise BrokenModel(f"config.json has no {name}; the model's folder is incomplete")
        return found

    def optional_count(self, name: str, default: int | None = None) -> int | None:
        """As `count`, but null is a value of its own and reads as None."""
        found: int | None = self._read(name, _COUNT, lambda value: type(value) is int and 0 < value < _LARGEST)
        return found if name in self.values else default

    def flag(self, name: str, default: bool) -> bool:
        """A boolean; absent or null is `default`."""
        found: bool | None = self._read(name, "true or false", lambda value: isinstance(value, bool))
        return default if found is None else found

    def text(self, name: str) -> str | None:
        """A string, or None when absent or null."""
        found: str | None = self._read(name, "a string", lambda value: isinstance(value, str))
        return found

    def names(self, name: str) -> Sequence[str] | None:
        """A list of strings, or None when absent or null."""
        return self._list(name, "a list of strings", lambda item: isinstance(item, str))

    def whole_numbers(self, name: str) -> Sequence[int] | None:
        """A list of whole numbers from 0, or None when absent or null."""
        return self._list(name, "a list of whole numbers", lambda item: type(item) is int and item >= 0)

    def nested(self, name: str) -> Fields | None:
        """An object, or None when absent or null."""
        found = self._read(name, "an object", lambda value: isinstance(value, Mapping))
        return None if found is None else Fields(found)

    def _list(self, name: str, expected: str, holds: Callable[[Any], bool]) -> Sequence[Any] | None:
        found: Sequence[Any] | None = self._read(
            name, expected, lambda value: isinstance(value, list | tuple) and all(map(holds, value))
        )
        return found

    def _read(self, name: str, expected: str, holds: Callable[[Any], bool]) -> Any:
        value = self.values.get(name)
        if value is not None and not holds(value):
            raise BrokenModel(f"config.json: {name} is {repr(value)[:60]}; expected {expected}")
        return value
