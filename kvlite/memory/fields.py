"""Typed, checked reads of a model's config.json. Knows types and ranges, not what a field means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._broken(name, value, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A string, or None when absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._broken(name, value, "a string")
        return value

    def names(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, or None when absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise self._broken(name, value, "a list of strings")
        return tuple(value)

    def whole_numbers(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers from 0, or None when absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Sequence) or not all(type(v) is int and v >= 0 for v in value):
            raise self._broken(name, value, "a list of whole numbers")
        return tuple(value)

    def nested(self, name: str) -> Fields | None:
        """An object, or None when absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._broken(name, value, "an object")
        return Fields(value)

    def _whole(self, name: str, value: object) -> int:
        if type(value) is not int or not 0 < value < _LARGEST:  # a bool is an int to isinstance
            raise self._broken(name, value, "a whole number above 0")
        return value

    @staticmethod
    def _broken(name: str, value: object, expected: str) -> BrokenModel:
        shown = repr(value)
        return BrokenModel(f"config.json: {name} is {shown[:60]}; expected {expected}")
