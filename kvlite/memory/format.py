"""Sizes as people write them, and what one cache slot stores. Knows nothing of models or budgets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from kvlite.errors import UsageError

UNITS = {"B": 1}
UNITS |= {f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("KMGT", 1)}
UNITS |= {f"{prefix}IB": 2 ** (10 * power) for power, prefix in enumerate("KMGT", 1)}
_SIZE = re.compile(r"(?P<number>\d{1,20}(?:\.\d{1,20})?)\s*(?P<unit>(?:[KMGT]i?)?B)", re.IGNORECASE | re.ASCII)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCALE_BYTES = 2  # fp16
MOST_GROUP = 32


@dataclass(frozen=True, slots=True)
class SlotFormat:
    """The way a slot stores its key and value: in a floating-point dtype, or as codes with an fp16 scale per group.

    `is_quantised` tells the two apart; `k_bits` and `v_bits` are those of one channel, scales not counted.
    """

    name: str
    k_bits: int
    v_bits: int
    is_quantised: bool = False

    @property
    def label(self) -> str:
        """The words to add to a number of tokens; none for a floating-point dtype."""
        return f" in {self.name}" if self.is_quantised else ""

    def bytes_per_slot(self, k_dim: int, v_dim: int) -> int:
        """Bytes of one key and one value of one KV head."""
        codes = self.code_bytes(k_dim, self.k_bits) + self.code_bytes(v_dim, self.v_bits)
        return codes + (self.num_scales(k_dim) + self.num_scales(v_dim)) * SCALE_BYTES

    def code_bytes(self, dim: int, bits: int) -> int:
        """Bytes of a vector of `dim` channels in so many bits without its scales.

        A whole number; of 6 bits the low 4 and the high 2 lie apart.
        """
        return -(-dim // 2) + -(-dim // 4) if bits == 6 else -(-dim * bits // 8)

    def group(self, dim: int) -> int:
        """Channels that share a scale: 32, or as many as the largest power of two that divides `dim`."""
        return min(MOST_GROUP, dim & -dim)

    def num_scales(self, dim: int) -> int:
        """Scales of a vector of `dim` channels; none in a floating-point dtype."""
        return dim // self.group(dim) if self.is_quantised and dim else 0


FORMATS = {name: SlotFormat(name, size * 8, size * 8) for name, size in DTYPE_BYTES.items()} | {
    "int8": SlotFormat("int8", 8, 8, is_quantised=True),
    "k6v4": SlotFormat("k6v4", 6, 4, is_quantised=True),
    "int4": SlotFormat("int4", 4, 4, is_quantised=True),
}
FORMAT_SPELLINGS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def dtype_name(name: str) -> str | None:
    """Read the name of a dtype to compute in; None for `auto`. Raises UsageError on any other name."""
    wanted = FORMAT_SPELLINGS.get(name, name)
    if wanted != "auto" and wanted not in DTYPE_BYTES:
        raise UsageError(f"unknown dtype '{name}'; give auto, {', '.join(DTYPE_BYTES)}")
    return None if wanted == "auto" else wanted


def slot_format(name: str, model_dtype: str) -> SlotFormat:
    """Read the name of a slot format; `auto` is the model's dtype. Raises UsageError on any other name."""
    wanted = model_dtype if name == "auto" else FORMAT_SPELLINGS.get(name, name)
    if wanted not in FORMATS:
        raise UsageError(f"no slot format '{wanted}'; give --kv-dtype one of: auto, {', '.join(FORMATS)}")
    return FORMATS[wanted]


def parse_size(text: str) -> int | None:
    """Bytes of `2GB` (powers of ten) or `2GiB` (powers of two), rounded down; None when `text` is not a size."""
    match = _SIZE.fullmatch(text.strip())
    return int(Fraction(match["number"]) * UNITS[match["unit"].upper()]) if match else None


def counted(number: int, noun: str) -> str:
    """Write a number of things: `1 turn`, `2 turns`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def human_bytes(count: int, decimals: int | None = None) -> str:
    """Write `count` bytes for reading, in powers of ten and three digits or so: `512 B`, `12.3 kB`, `2.00 GB`.

    With `decimals` so many follow the point, so that 1.998 GB is not shown as 2.00 GB.
    """
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < (999.5 if decimals is None else 1000) or unit == "TB":
            break
        size /= 1000
    if unit == "B":
        return f"{count} B"
    if decimals is None:
        decimals = 2 if abs(size) < 9.995 else 1 if abs(size) < 99.95 else 0
    return f"{size:.{decimals}f} {unit}"


def short_size(count: int, *, up: bool) -> str:
    """The shortest size, as `Budget` reads it, within a tenth of `count` bytes, rounded up or down: `1.3MB`."""
    for unit in ("TB", "GB", "MB", "kB"):
        size = UNITS[unit.upper()]
        if count >= size:
            tenth = size // 10
            tenths = -(-count // tenth) if up else count // tenth
            return f"{tenths // 10}.{tenths % 10}{unit}".replace(".0", "")
    return f"{count}B"
