"""The sizes of rows that suit the lines of a batch: short ones do not pay for long ones. Ints only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

MOST_SIZES = 3
WORTH_IT = 0.75  # another size must leave at most so much of the steps, for rows run empty between two sizes
_STEP = 32  # sizes are multiples of it, so that a line that is a little longer needs no other cache


def row_sizes(needs: Sequence[int], most: int, rows_of: Callable[[int], int]) -> tuple[int, ...]:
    """Up to MOST_SIZES sizes of rows, ascending, for lines that need so many slots.

    Each line goes to the smallest size that holds it; none is above `most`, where longer lines evict. `rows_of(size)`
    says how many rows of a size there can be. The sizes are those with the fewest steps, taking each line's need as the
    time it takes.
    """
    held = sorted(min(need, most) for need in needs)
    places = [min(len(held) * part // 8, len(held) - 1) for part in range(1, 9)]
    classes = sorted({min(most, -(-held[place] // _STEP) * _STEP) for place in places})
    rows = {size: max(1, rows_of(size)) for size in classes}
    best: tuple[int, ...] = (classes[-1],)
    for count in range(2, 1 + min(MOST_SIZES, len(classes))):
        for chosen in combinations(classes[:-1], count - 1):
            sizes = (*chosen, classes[-1])
            if _steps(held, sizes, rows) < WORTH_IT * _steps(held, best, rows):
                best = sizes
    return best


def size_for(need: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes`, which ascend, that holds `need`, or else the largest."""
    return sizes[min(bisect_left(sizes, need), len(sizes) - 1)]


def _steps(held: Iterable[int], sizes: Sequence[int], rows: dict[int, int]) -> float:
    """Count the steps of all lines where each size's rows work together; the last row of a size ends alone."""
    work = dict.fromkeys(sizes, 0)
    count = dict.fromkeys(sizes, 0)
    for need in held:
        size = size_for(need, sizes)
        work[size] += need
        count[size] += 1
    return sum(work[size] / min(rows[size], max(1, count[size])) for size in sizes)
