"""The rows of a batch that a budget holds; a row's slots never depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace

from kvlite.errors import BudgetTooSmall
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import human_bytes
from kvlite.memory.plan import AUTO_SHARE, CachePlan, CacheSpec, plan_cache
from kvlite.memory.shape import ModelShape

DEFAULT_ROW_SLOTS = 2048
"""Slots of a row where the budget of one sequence is not given and the whole budget would buy more."""

_SIZES = (BudgetKind.BYTES, BudgetKind.TOKENS, BudgetKind.FULL)
"""Budgets that say how much they are, whatever there is."""


def plan_rows(
    shape: ModelShape,
    total: Budget,
    per_sequence: Budget | None,
    spec: CacheSpec,
    *,
    most_rows: int,
    free_bytes: int | None,
) -> CachePlan:
    """Plan at most `most_rows` equal rows inside the budget `total`, each with the slots that `per_sequence` buys.

    Raises what `plan_cache` raises, and BudgetTooSmall where one sequence's budget exceeds the total.
    """

    def plan(budget: Budget, rows: int, free: int | None) -> CachePlan:
        return plan_cache(shape, budget, spec, rows=rows, free_bytes=free)

    whole = plan(total, 1, free_bytes)
    if per_sequence is not None:
        row = plan(per_sequence, 1, None if per_sequence.kind in _SIZES else whole.budget_bytes)
    elif total.kind is BudgetKind.FULL:
        row = whole
    else:
        row = plan(Budget(BudgetKind.TOKENS, min(whole.slots, DEFAULT_ROW_SLOTS)), 1, None)
    follows_rows = total.kind in (BudgetKind.AUTO, BudgetKind.FULL) and free_bytes is not None
    allowed = int(free_bytes * AUTO_SHARE) if follows_rows and free_bytes is not None else whole.budget_bytes
    if row.reserved_bytes > allowed:
        limit, change = ("KV budget", "raise --kv-budget")
        if follows_rows:
            limit, change = ("free memory for them", "free some memory")
        raise BudgetTooSmall(
            f"one sequence takes {human_bytes(row.reserved_bytes)}, the {limit} is {human_bytes(allowed)}; "
            f"give a smaller --kv-per-seq, or {change}"
        )
    rows = plan(Budget(BudgetKind.TOKENS, row.slots), min(most_rows, allowed // row.reserved_bytes), None)
    budget_bytes = rows.reserved_bytes if follows_rows else allowed
    row_budget = row.budget_bytes if per_sequence is not None else budget_bytes // rows.rows
    return replace(rows, budget_bytes=budget_bytes, row_budget_bytes=row_budget, capped_by=row.capped_by)
