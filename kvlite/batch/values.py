"""Read a line's JSON exactly: a boolean is not a number, 64.0 is not a count, NaN is not JSON, null is "not given".

Every function raises LineError with the key, its value and what to give instead.
"""

from __future__ import annotations

import json
import math
from typing import Any

from kvlite.batch.item import Json, LineError

MOST_NESTED = 64
_MOST_DIGITS = 1000  # of a whole number; Python reads some more, and slowly
_KINDS = {type(None): "missing", bool: "a boolean", str: "a string", dict: "an object", list: "a list"}
_WANTED: dict[tuple[type, ...], str] = {
    (int,): "a whole number",
    (int, float): "a number",
    (dict,): "an object",
    (bool,): "true or false",
    (bool, int): "true, false or a whole number",
}


def parse_json(raw: bytes) -> object:
    """Parse one line of UTF-8 JSON."""
    decoded = utf8(raw)
    try:
        return json.loads(decoded.rstrip(), parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise LineError("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        hint = "" if raw.lstrip()[:1] in (b"{", b"[", b'"') else "; plain lines need --format text"
        raise LineError(f"not JSON: {error.msg} at column {error.pos + 1}{hint}") from None
    except ValueError as error:
        raise LineError(f"not JSON: {error}") from None


def utf8(raw: bytes) -> str:
    """Decode UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}") from None


def given(body: Json, name: str, *kinds: type) -> Any:
    """Read a value whose type is one of `kinds`; None where it is not given."""
    value = body.get(name)
    if value is None or type(value) in kinds:
        return value
    raise LineError(f"{name} is {kind(value)}; give {_WANTED[kinds]}", name)


def count(body: Json, name: str) -> int | None:
    """Read a whole number from 1 on; None where it is not given."""
    value: int | None = given(body, name, int)
    if value is not None and value < 1:
        raise LineError(f"{name} is {shown(value)}; give at least 1", name)
    return value


def text(body: Json, name: str) -> str | None:
    """Read a string that can be written as UTF-8; None where it is not given."""
    value = body.get(name)
    return None if value is None else string(value, name)


def string(value: object, name: str) -> str:
    """Check that `value` is a string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise LineError(f"{name} is {kind(value)}; give a string", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LineError(f"{name} holds half a surrogate pair, which is no character", name) from None
    return value


def shallow(value: Json | None, name: str) -> Json | None:
    """Check that `value` is nested at most MOST_NESTED levels deep, so that it can be written again."""
    level: list[object] = [value]
    for _ in range(MOST_NESTED):
        parents = (list(parent.values()) if isinstance(parent, dict) else parent for parent in level)
        level = [child for parent in parents if isinstance(parent, list) for child in parent]
        if not level:
            return value
    raise LineError(f"{name} is nested deeper than {MOST_NESTED} levels; flatten it", name)


def kind(value: object) -> str:
    """Name the type of `value` for an error."""
    return _KINDS.get(type(value)) or f"the number {shown(value)}"


def shown(value: object) -> str:
    """Write `value` as JSON, cut to what fits into one line."""
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print the longest
        return "with too many digits"
    try:
        written = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "what is nested too deeply"
    return written if len(written) <= 60 else f"{written[:57]}..."


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"{digits[:20]}... has {len(digits)} digits, too many for a number")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value
