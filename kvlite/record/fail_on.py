"""Named values of a run record, gates over them such as `kv.peak_bytes>2GB`, and differences of two runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import eq, ge, gt, le, lt, ne
from statistics import median

from kvlite.errors import UsageError
from kvlite.memory.format import human_bytes, parse_size
from kvlite.record.schema import RunRecord
from kvlite.record.table import UNKNOWN, Table, percent
from kvlite.record.view import peak_vram_bytes

Value = str | int | float

_OPERATORS = {">": gt, ">=": ge, "<": lt, "<=": le, "==": eq, "!=": ne}
_GATE = re.compile(
    r"(?P<field>[\w.]+)\s*(?P<sign>>=|<=|==|!=|>|<)\s*"
    r"(?P<minus>-?)(?P<number>\d{1,20}(?:\.\d{1,20})?)\s*(?P<unit>[A-Za-z]*)",
    re.ASCII,
)
_NAMES_OF_A_RUN = {"format", "run_id", "started", "ended", "command"}


def judge(gate: str, numbers: Mapping[str, float]) -> str | None:
    """The reason why `FIELD > NUMBER[UNIT]` fails a run with these numbers, None where the comparison is false.

    Raises UsageError on anything else, on a size for a field of no bytes, and on a field that was not measured.
    """
    match = _GATE.fullmatch(gate.strip())
    if match is None:
        raise UsageError(f"--fail-on {gate!r}: write FIELD>VALUE, such as peak_vram_bytes>6.5GB (> >= < <= == !=)")
    field, number, unit = match["field"], match["number"], match["unit"]
    value: float | None = None
    if not unit or (unit == "s" and field.endswith("_s")):
        value = float(number) if "." in number else int(number)
    elif _is_size(field):
        value = parse_size(number + unit)
    if value is None:
        units = "a size such as 6.5GB" if _is_size(field) else "a bare number"
        raise UsageError(f"--fail-on {gate!r}: {number}{unit} does not fit {field}; give {units}")
    if field not in numbers:
        raise UsageError(f"--fail-on: '{field}' was not measured in this run; it has {', '.join(numbers)}")
    if not _OPERATORS[match["sign"]](numbers[field], -value if match["minus"] else value):
        return None
    return f"{field} is {_shown(field, numbers[field])}, fails on {gate.strip()}"


def numbers_of(record: RunRecord, other: RunRecord | None = None) -> dict[str, float]:
    """The numbers among a run's values, which gates can be over.

    With `other` also `change.FIELD`, its number minus the first's, for each that both measured.
    """
    numbers = {name: value for name, value in values_of(record).items() if not isinstance(value, str)}
    others = numbers_of(other) if other is not None else {}
    return numbers | {f"change.{name}": others[name] - value for name, value in numbers.items() if name in others}


def values_of(record: RunRecord) -> dict[str, Value]:
    """Every measured value of a run by dotted name, and values that follow from its lists; a claim is 0 or 1."""
    found: dict[str, object] = {
        "peak_kv_bytes": record.kv.peak_bytes if record.kv else None,
        "peak_vram_bytes": peak_vram_bytes(record),
        "peak_rss_bytes": record.memory.host_rss_peak_bytes,
        "total_s": record.seconds,
        "ttft_s": max((r.ttft_s for r in record.requests if r.ttft_s is not None), default=None),
        "tok_s": median([r.tok_s for r in record.requests if r.tok_s is not None] or [0.0]) or None,
        "num_requests": len(record.requests) + record.requests_left_out,
        "num_warnings": len(record.warnings),
        **_flat(record.model_dump(by_alias=True, mode="json", exclude=_NAMES_OF_A_RUN)),
    }
    for term in record.memory.terms:
        name = term.name.replace(" ", "_")
        found[f"memory.{name}.predicted_bytes"] = term.predicted_bytes
        found[f"memory.{name}.measured_bytes"] = term.measured_bytes
    for phase in record.memory.phases:
        found[f"phase.{phase.name}.peak_bytes"] = phase.peak_bytes
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in found.items()
        if isinstance(value, str | int | float)
    }


def difference_table(record: RunRecord, other: RunRecord) -> Table:
    """The values that two runs do not share, with the change from the first to the second."""
    first, second = values_of(record), values_of(other)
    rows = []
    for name in dict.fromkeys((*first, *second)):
        before, after = first.get(name), second.get(name)
        if before != after:
            rows.append((name, _shown(name, before), _shown(name, after), _change(name, before, after)))
    return Table(("FIELD", record.run_id, other.run_id, "CHANGE"), tuple(rows), "" if rows else "nothing differs")


def _flat(block: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in block.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _shown(name: str, value: Value | None) -> str:
    if isinstance(value, str | None):
        return UNKNOWN if value is None else value
    if _is_size(name):
        return human_bytes(int(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _change(name: str, before: Value | None, after: Value | None) -> str:
    if before is None or after is None or isinstance(before, str) or isinstance(after, str):
        return ""
    share = f" ({percent((after - before) / before, '+.1%')})" if before else ""
    return f"{'+' if after > before else ''}{_shown(name, after - before)}{share}"


def _is_size(name: str) -> bool:
    return name.endswith(("_bytes", "bytes_per_token"))
