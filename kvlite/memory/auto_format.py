"""The slot format that `--kv-dtype auto` takes, as docs/fidelity.md measured it.

The model's own dtype where the budget holds the whole window in it, because nothing is lost then; else the more exact
of int8 and int4 that holds the window; else int4. At equal bytes four bits keep more of a conversation than any policy
does in sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvlite.errors import CapacityError
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS
from kvlite.memory.plan import CachePlan, CacheSpec
from kvlite.memory.rows import DEFAULT_ROW_SLOTS
from kvlite.memory.shape import ModelShape

_CODED = ("int8", "int4")


def automatic_formats(
    shape: ModelShape,
    spec: CacheSpec,
    total: Budget,
    per_sequence: Budget | None,
    buys: Callable[[CacheSpec], CachePlan],
    *,
    with_rows: bool,
) -> tuple[CacheSpec, ...]:
    """Return `spec`, which is in the model's dtype, in the formats to try: preferred first, then the more exact ones.

    `buys` plans the cache that the budget `total` buys for a spec. Without rows, or with `per_sequence` for each of
    them, a cache should hold the whole window; rows without a budget of their own should hold DEFAULT_ROW_SLOTS.
    """
    decisive = per_sequence or total
    is_of_bytes = decisive.kind in (BudgetKind.BYTES, BudgetKind.SHARE, BudgetKind.AUTO)
    if not is_of_bytes or not any(layer.kv_heads for layer in shape.layers):
        return (spec,)
    tried: list[CacheSpec] = []
    for candidate in (spec, *(replace(spec, slot_format=FORMATS[name]) for name in _CODED)):
        tried.insert(0, candidate)
        try:
            found = buys(candidate)
        except CapacityError:
            continue
        wanted = DEFAULT_ROW_SLOTS if with_rows and per_sequence is None else found.most_slots
        if found.slots >= min(found.most_slots, wanted):
            break
    return tuple(tried)
