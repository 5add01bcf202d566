"""How many rows of a batch a budget holds; a row's slots never depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace

from kvlite.errors import BudgetTooSmall
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import SlotFormat, human_bytes
from kvlite.memory.plan import AUTO_SHARE, MOST_CHUNK, CachePlan, plan_cache
from kvlite.memory.shape import ModelShape

DEFAULT_ROW_SLOTS = 2048
"""Slots of a row where the budget of one sequence is not given and the whole budget would buy more."""


def plan_rows(
    shape: ModelShape,
    total: Budget,
    per_sequence: Budget | None,
    *,
    most_rows: int,
    slot_format: SlotFormat,
    state_bytes_per_slot: int,
    free_bytes: int | None,
    protected_slots: int,
    evicts: bool = True,
    chunk_limit: int = MOST_CHUNK,
) -> CachePlan:
    """At most `most_rows` equal rows inside the budget `total`, each with what `per_sequence` buys.

    Raises what `plan_cache` raises, and BudgetTooSmall where one sequence's budget exceeds the total.
    """

    def plan(budget: Budget, rows: int, free: int | None) -> CachePlan:
        return plan_cache(
            shape,
            budget,
            slot_format=slot_format,
            state_bytes_per_slot=state_bytes_per_slot,
            rows=rows,
            free_bytes=free,
            protected_slots=protected_slots,
            evicts=evicts,
            chunk_limit=chunk_limit,
        )

    whole = plan(total, 1, free_bytes)
    if per_sequence is not None:
        row = plan(per_sequence, 1, whole.budget_bytes if per_sequence.kind is not BudgetKind.BYTES else None)
    elif total.kind is BudgetKind.FULL:
        row = whole
    else:
        row = plan(Budget(BudgetKind.TOKENS, min(whole.slots, DEFAULT_ROW_SLOTS)), 1, None)
    follows_rows = total.kind in (BudgetKind.AUTO, BudgetKind.FULL) and free_bytes is not None
    allowed = int(free_bytes * AUTO_SHARE) if follows_rows and free_bytes is not None else whole.budget_bytes
    if row.reserved_bytes > allowed:
        raise BudgetTooSmall(
            f"one sequence takes {human_bytes(row.reserved_bytes)}, the KV budget {human_bytes(allowed)}; "
            "give a smaller --kv-per-seq or a larger --kv-budget"
        )
    rows = plan(Budget(BudgetKind.TOKENS, row.slots), min(most_rows, allowed // row.reserved_bytes), None)
    budget_bytes = rows.reserved_bytes if follows_rows else allowed
    return replace(rows, budget_bytes=budget_bytes, capped_by=row.capped_by)
