"""A table as every report shows it: in a terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvlite.memory.format import human_bytes

UNKNOWN = "-"
_HEIGHTS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text, a note below; the first `fixed` columns name a row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    fixed: int = 1

    def pieces(self, width: int | None) -> list[Table]:
        """Split the columns so that each piece fits `width` characters, with the fixed ones in front of every piece.

        A piece has at least one of the other columns. None is any width.
        """
        sizes = [max(map(width_of, column)) + 2 for column in zip(self.columns, *self.rows, strict=True)]
        room = math.inf if width is None else width + 2 - sum(sizes[: self.fixed])
        groups: list[list[int]] = [[]]
        for index in range(self.fixed, len(sizes)):
            if groups[-1] and sum(sizes[at] for at in groups[-1]) + sizes[index] > room:
                groups.append([])
            groups[-1].append(index)
        pieces = []
        for group in groups:
            shown = [*range(self.fixed), *group]
            columns, *rows = (tuple(row[index] for index in shown) for row in (self.columns, *self.rows))
            pieces.append(replace(self, columns=columns, rows=tuple(rows)))
        return pieces


def width_of(text: str) -> int:
    """Columns that `text` takes on a terminal: two for a character of CJK or an emoji, none for a combining one."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def sparkline(values: Sequence[float], highest: float, width: int = 36) -> str:
    """Draw values from 0 to `highest` in at most `width` columns, of several the largest."""
    cells = min(width, len(values))
    shown = [max(values[len(values) * at // cells : len(values) * (at + 1) // cells]) for at in range(cells)]
    return "".join(_HEIGHTS[min(7, max(0, math.ceil(8 * value / (highest or 1)) - 1))] for value in shown)


def size(num_bytes: int | None) -> str:
    """Bytes to read, `-` where they were not measured."""
    return UNKNOWN if num_bytes is None else human_bytes(num_bytes)


def count(number: int | None) -> str:
    """A count to read, `-` where nothing was counted."""
    return UNKNOWN if number is None else f"{number:,}"


def percent(share: float, form: str = ".1%") -> str:
    """A share as the reports write it: `99.9 %`."""
    return f"{share:{form}}".replace("%", " %")


def kept_percent(share: float) -> str:
    """A share of what is kept, in whole percent: 0 % and 100 % are said of nothing and of all alone."""
    if 0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1:
        return ">99 %"
    return percent(share, ".0%")
