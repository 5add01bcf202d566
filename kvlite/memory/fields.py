"""Typed, checked reads of a model's config.json. Knows types and ranges, not what a field means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvlite.errors import BrokenModel

_LARGEST = 2**40  # no dimension of a model comes near; keeps products finite


@dataclass(frozen=True, slots=True)
class Fields:
    """The values of a config.json object; every read raises BrokenModel with the field, the value and the expectation.

    A field that is absent and one that is null differ, as they do in transformers: absent means the class default.
    """

    values: Mapping[str, object]

    def count(self, *names: str, default: int | None = None) -> int:
        """A whole number above 0, under the first of `names` that is present; `default` when none is."""
        for name in names:
            if name in self.values:
                return self._whole(name, self.values[name])
        if default is None:
            raise BrokenModel(f"config.json has no {names[0]}; the model's folder is incomplete")
        return default

    def optional_count(self, name: str, default: int | None = None) -> int | None:
        """As `count`, but null is a value of its own and reads as None."""
        if name not in self.values:
            return default
        value = self.values[name]
        return None if value is None else self._whole(name, value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean; absent or null is `default`."""
        value: bool | None = self._optional(name, bool, "true or false")
        return default if value is None else value

    def text(self, name: str) -> str | None:
        """A string, or None when absent or null."""
        value: str | None = self._optional(name, str, "a string")
        return value

    def names(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, or None when absent or null."""
        return self._list(name, lambda item: isinstance(item, str), "a list of strings")

    def whole_numbers(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers from 0, or None when absent or null."""
        return self._list(name, lambda item: type(item) is int and item >= 0, "a list of whole numbers")

    def nested(self, name: str) -> Fields | None:
        """An object, or None when absent or null."""
        value = self._optional(name, Mapping, "an object")
        return None if value is None else Fields(value)

    def _optional(self, name: str, kind: Any, expected: str) -> Any:
        value = self.values.get(name)
        if not isinstance(value, kind | None):
            raise self._broken(name, value, expected)
        return value

    def _list(self, name: str, holds: Callable[[Any], bool], expected: str) -> tuple[Any, ...] | None:
        value = self._optional(name, list | tuple, expected)
        if value is not None and not all(map(holds, value)):
            raise self._broken(name, value, expected)
        return None if value is None else tuple(value)

    def _whole(self, name: str, value: object) -> int:
        if type(value) is not int or not 0 < value < _LARGEST:  # a bool is an int to isinstance
            raise self._broken(name, value, "a whole number above 0")
        return value

    @staticmethod
    def _broken(name: str, value: object, expected: str) -> BrokenModel:
        return BrokenModel(f"config.json: {name} is {repr(value)[:60]}; expected {expected}")
