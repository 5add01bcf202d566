"""Which slot format `--kv-dtype auto` is, as docs/fidelity.md measured it: where tokens are lost, bits count least.

The model's own dtype where the budget holds the whole window in it, because nothing is then lost; else the more exact
of int8 and int4 that does; else int4. At equal bytes four bits keep more of what was said than any policy does in
sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvlite.errors import CapacityError
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS
from kvlite.memory.plan import CachePlan, CacheSpec
from kvlite.memory.shape import ModelShape

_CODED = ("int8", "int4")


def automatic_formats(
    shape: ModelShape,
    spec: CacheSpec,
    row_budget: Budget,
    buys: Callable[[CacheSpec], CachePlan],
    enough_slots: int | None = None,
) -> tuple[CacheSpec, ...]:
    """`spec`, which is in the model's dtype, in the formats to try: the one wanted first, then the more exact ones.

    `row_budget` is what one row is given, `buys` says what the whole budget buys of a spec, `enough_slots` is how many
    slots a row wants where that is less than the model's window.
    """
    is_of_bytes = row_budget.kind in (BudgetKind.BYTES, BudgetKind.SHARE, BudgetKind.AUTO)
    if not is_of_bytes or not any(layer.kv_heads for layer in shape.layers):
        return (spec,)
    tried: list[CacheSpec] = []
    for candidate in (spec, *(replace(spec, slot_format=FORMATS[name]) for name in _CODED)):
        tried.insert(0, candidate)
        try:
            found = buys(candidate)
        except CapacityError:
            continue
        if found.slots >= min(found.most_slots, enough_slots or found.most_slots):
            break
    return tuple(tried)
