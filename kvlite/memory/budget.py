"""The KV budget as the user writes it, read into one unit. Knows neither models nor devices."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from kvlite.errors import UsageError
from kvlite.memory.format import parse_size

FORMS = "2GB, 2GiB, 512MB, 25%, 8000tok, auto or full"

_TOKENS = re.compile(r"(?P<count>\d{1,20})\s*(?:tok|toks|token|tokens)", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"(?P<percent>\d{1,20}(?:\.\d{1,20})?)\s*%", re.ASCII)
_MOST_BYTES = 2**63 - 1
_MOST_TOKENS = 2**31 - 1  # positions are int32


class BudgetKind(StrEnum):
    """The unit of a budget."""

    BYTES = "bytes"
    SHARE = "share"
    TOKENS = "tokens"
    AUTO = "auto"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on the KV cache: bytes, a share of free memory, tokens kept, what fits, or the model's whole window.

    `amount` is bytes, a share from above 0 to 1, or tokens; 0 for `auto` and `full`. `text` is what the user wrote,
    which a share always has.
    """

    kind: BudgetKind
    amount: int | Fraction = 0
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget. Raises UsageError, listing the forms, on anything else; a bare number has no unit."""
        wanted = text.strip()
        if wanted.lower() in (BudgetKind.AUTO, BudgetKind.FULL):
            return cls(BudgetKind(wanted.lower()))
        if share := _SHARE.fullmatch(wanted):
            portion = Fraction(share["percent"]) / 100
            if not 0 < portion <= 1:
                raise UsageError(f"KV budget '{text}' is not a share of memory; give above 0% and at most 100%")
            return cls(BudgetKind.SHARE, portion, wanted)
        if tokens := _TOKENS.fullmatch(wanted):
            return cls(BudgetKind.TOKENS, _in_range(text, int(tokens["count"]), _MOST_TOKENS, "tok"), wanted)
        size = parse_size(wanted)
        if size is None:
            raise UsageError(f"KV budget '{text}' is not understood; give one of the forms {FORMS}")
        return cls(BudgetKind.BYTES, _in_range(text, size, _MOST_BYTES, "B"), wanted)

    def __str__(self) -> str:
        units = {BudgetKind.BYTES: "B", BudgetKind.TOKENS: "tok"}
        return self.text or (f"{self.amount}{units[self.kind]}" if self.kind in units else self.kind.value)


def _in_range(text: str, amount: int, most: int, unit: str) -> int:
    if amount < 1:
        raise UsageError(f"KV budget '{text}' is nothing; give one of the forms {FORMS}")
    if amount > most:
        raise UsageError(f"KV budget '{text}' is more than any machine holds; give at most {most}{unit}")
    return amount
