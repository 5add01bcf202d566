"""One model on one device: what a budget buys there, what fits, and what to change when it does not.

`kvlite plan`, a dry run and every run ask here, before the weights are loaded or beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from kvlite.errors import BudgetTooSmall, CapacityError
from kvlite.memory.allotment import equally
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS, human_bytes, short_size
from kvlite.memory.plan import AUTO_SHARE, CachePlan, CacheSpec, largest, plan_cache, plan_row
from kvlite.memory.prediction import (
    DeviceKind,
    MemoryPlan,
    Weights,
    cache_terms,
    pass_terms,
    weight_term,
    weights_held_in,
)
from kvlite.memory.shape import ModelShape

LONGEST = 2**31 - 1
"""More slots than a row may have: it then has as many as it may."""

DEFAULT_ROW_SLOTS = 2048
"""Slots of a row where the budget of one sequence is not given and the whole budget would buy more."""

_SIZES = (BudgetKind.BYTES, BudgetKind.TOKENS, BudgetKind.FULL)  # say how much they are, whatever there is


@dataclass(frozen=True, slots=True)
class Fit:
    """The model, its device and the cache asked for there: all that stays while budgets are compared.

    `free_bytes` is what the device has before the weights are loaded, or beside them (`is_loaded`); None: unknown.
    `batch` is the most rows of a batch, None one conversation with the whole budget; `row_budget` is the budget of each
    row where one is given, `beside_bytes` what rows leave of the budget where it holds one of them. `is_automatic`: the
    slot format may be another than that of `spec`, as `specs` says.
    """

    shape: ModelShape
    spec: CacheSpec
    weights: Weights | None
    quant: str
    device: DeviceKind
    free_bytes: int | None
    batch: int | None = None
    row_budget: Budget | None = None
    is_automatic: bool = False
    is_loaded: bool = False
    beside_bytes: int = 0
    kernels: str = "auto"

    @property
    def most_rows(self) -> int:
        """Rows that may run at once; the state of hybrids would take in the padding of neighbouring rows."""
        return 1 if self.batch is None or self.shape.has_state else self.batch

    def specs(self, budget: Budget) -> tuple[CacheSpec, ...]:
        """Candidate caches to spend `budget` on, preferred first; the last needs no check on the loaded model.

        As docs/fidelity.md measured it: the model's own dtype where the budget holds the whole window in it, because
        nothing is lost then; else the most exact of int8, k6v4 and int4 that holds the window; else int4 where the
        model loses next to nothing by it, else k6v4. At equal bytes so few bits keep more of a conversation than any
        policy does in sixteen. Rows without a budget of their own should hold
        DEFAULT_ROW_SLOTS.
        """
        is_of_bytes = (self.row_budget or budget).kind in (BudgetKind.BYTES, BudgetKind.SHARE, BudgetKind.AUTO)
        if not self.is_automatic or not is_of_bytes:
            return (self.spec,)
        tried: list[CacheSpec] = []
        for spec in (self.spec, *(replace(self.spec, slot_format=FORMATS[name]) for name in ("int8", "k6v4", "int4"))):
            tried.insert(0, spec)
            try:
                found = replace(self, spec=spec)._nominal(budget)
            except CapacityError:
                continue
            shares_budget = self.batch is not None and self.row_budget is None
            if found.slots >= min(found.most_slots, DEFAULT_ROW_SLOTS if shares_budget else found.most_slots):
                break
        return tuple(tried)

    def cache(self, budget: Budget) -> CachePlan:
        """The cache that `budget` buys. Raises CapacityError where it is too little, or more than the device has."""
        return self._plan(budget, self.free_for_cache)

    def rows(self, budget: Budget, slots: int, lines: int, shared: int = 0) -> CachePlan:
        """The cache of at most `lines` rows of `slots` each, or as near to that as one row may have.

        Room is left for copies of `shared` tokens, where the budget holds them beside a row. Rows of `slots` hold what
        they are for whole: every head and layer has as many. Raises as `cache` does.
        """
        few = replace(self, batch=min(self.most_rows, lines))
        equal = replace(few, spec=replace(self.spec, layer_rule=equally, head_shares=None))
        one = None if self.row_budget is None else 1  # else a row may have the whole budget
        wanted = max(slots, equal.spec.least_slots(self.shape))
        if wanted > replace(equal, batch=one).cache(budget).slots:
            return replace(few, batch=one and few.batch).cache(budget)
        if shared:
            copies = plan_cache(self.shape, Budget(BudgetKind.TOKENS, shared), equal.spec, free_bytes=None)
            equal = replace(equal, beside_bytes=copies.reserved_bytes)
        found = replace(equal, row_budget=Budget(BudgetKind.TOKENS, wanted)).cache(budget)
        return replace(found, capped_by=None)

    @property
    def held_in(self) -> str:
        """The form that most of the weights are held in once they are loaded."""
        return weights_held_in(self.weights, self.shape.dtype, self.quant, self.device, self.kernels)

    def memory(self, cache: CachePlan | None) -> MemoryPlan:
        """Every term of a run with `cache`, weights first; without one, all that lies beside a cache at its largest."""
        rows, chunk = (cache.rows, cache.chunk) if cache else (self.most_rows, self.spec.chunk_limit)
        if cache is not None and self.batch is not None:  # rows that will not evict
            chunk = cache.most_chunk
        weights = weight_term(self.shape, self.weights, self.quant, self.device, self.kernels)
        rest = pass_terms(self.shape, self.spec.slot_format, rows, chunk, self.quant, self.device)
        return MemoryPlan((weights, *(cache_terms(cache) if cache else ()), *rest))

    @property
    def free_for_cache(self) -> int | None:
        """Bytes left for the cache beside the rest; None when free memory is unknown."""
        if self.free_bytes is None:
            return None
        taken = ("weights", "cuda_context") if self.is_loaded else ()  # no part of what is free
        beside = self.memory(None).predicted().items()
        return max(0, self.free_bytes - sum(size for name, size in beside if name not in taken))

    def _nominal(self, budget: Budget) -> CachePlan:
        """The cache that `budget` buys on a device that has as much. Raises CapacityError where it is too little."""
        follows_free = budget.kind in (BudgetKind.AUTO, BudgetKind.SHARE)
        follows_free |= budget.kind is BudgetKind.FULL and self.batch is not None  # as many rows as fit
        return self._plan(budget, self.free_for_cache if follows_free else None)

    def _plan(self, budget: Budget, free_bytes: int | None) -> CachePlan:
        """One row with all of `budget`; of a batch as many equal rows as it holds, however many slots they have.

        Raises BudgetTooSmall where it does not hold one row of a batch, and what `plan_cache` raises.
        """
        plan = partial(plan_cache, self.shape, spec=self.spec)
        if self.batch is None:
            row, free = plan_row(self.shape, budget, self.spec, free_bytes=free_bytes), self.free_for_cache
            is_tight = self.device == "cpu" and free is not None and 2 * row.reserved_bytes > free
            return plan(budget, free_bytes=free_bytes) if is_tight else row  # a row that grows is copied
        whole = plan(budget, free_bytes=free_bytes)
        row = self._row(budget, whole)
        allowed, limit, change = whole.budget_bytes, "KV budget", "raise --kv-budget"
        follows_rows = False
        if free_bytes is not None and budget.kind in (BudgetKind.AUTO, BudgetKind.FULL):
            follows_rows = True
            allowed, limit, change = int(free_bytes * AUTO_SHARE), "free memory for them", "free some memory"
        if row.reserved_bytes > allowed:
            raise BudgetTooSmall(
                f"one sequence takes {human_bytes(row.reserved_bytes)}, the {limit} is {human_bytes(allowed)}; "
                f"give a smaller --kv-per-seq, or {change}"
            )
        beside = min(self.beside_bytes, allowed - row.reserved_bytes)
        count = min(self.most_rows, (allowed - beside) // row.reserved_bytes)
        rows = plan(Budget(BudgetKind.TOKENS, row.slots), rows=count, free_bytes=None)
        budget_bytes = rows.reserved_bytes + beside if follows_rows else allowed
        row_bytes = budget_bytes // count if self.row_budget is None else row.budget_bytes
        return replace(rows, budget_bytes=budget_bytes, row_budget_bytes=row_bytes, capped_by=row.capped_by)

    def _row(self, total: Budget, whole: CachePlan) -> CachePlan:
        """One row of a batch: its slots follow from its own budget and from `total`, never from its neighbours."""
        plan = partial(plan_cache, self.shape, spec=self.spec)
        if self.row_budget is not None:
            free_bytes = None if self.row_budget.kind in _SIZES else whole.budget_bytes
            return plan(self.row_budget, free_bytes=free_bytes)
        if total.kind is BudgetKind.FULL:
            return whole
        return plan(Budget(BudgetKind.TOKENS, min(whole.slots, DEFAULT_ROW_SLOTS)), free_bytes=None)


def slots_held(shape: ModelShape, spec: CacheSpec, budget: Budget, *, is_automatic: bool) -> int:
    """Slots of one row that a budget of bytes or tokens buys, wherever that is; 0 where it is too little."""
    fit = Fit(shape, spec, None, "none", "cpu", None, is_automatic=is_automatic)
    try:
        return replace(fit, spec=fit.specs(budget)[0]).cache(budget).slots
    except CapacityError:
        return 0


@dataclass(frozen=True, slots=True)
class Quote:
    """The cache that `budget` buys, made as `spec` says, and all terms; or why there is no cache.

    `shortage` is one line on what is missing, None when it fits.
    """

    fit: Fit
    budget: Budget
    spec: CacheSpec
    cache: CachePlan | None
    memory: MemoryPlan
    shortage: str | None

    @property
    def fits(self) -> bool:
        return self.shortage is None

    @property
    def takes_another_format(self) -> bool:
        """True where `auto` chose another slot format than the model's dtype."""
        return self.spec.slot_format != self.fit.spec.slot_format


def quote(fit: Fit, budget: Budget) -> Quote:
    """Say what `budget` buys on the device of `fit`, before it is loaded; a shortage is told, not raised."""
    spec = fit.specs(budget)[0]
    spent = replace(fit, spec=spec)
    rest = spent.memory(None)
    if fit.free_bytes is not None and rest.total_bytes > fit.free_bytes:
        free, needed = human_bytes(fit.free_bytes), human_bytes(rest.total_bytes)
        return Quote(fit, budget, spec, None, rest, f"it takes {needed} beside the cache, and {free} are free")
    try:
        cache = spent._nominal(budget)
    except CapacityError as error:
        return Quote(fit, budget, spec, None, rest, str(error))
    left, wanted, shortage = spent.free_for_cache, max(cache.reserved_bytes, cache.budget_bytes), None
    if left is not None and wanted > left:  # even where the cache would not use all of it
        shortage = (
            f"KV budget {budget} is {human_bytes(wanted)}, and {human_bytes(left)} are left for it beside the rest"
        )
    return Quote(fit, budget, spec, cache, spent.memory(cache), shortage)


def advice(found: Quote) -> list[str]:
    """Changes each of which makes it fit on its own; the last resort when none does, nothing when it fits."""
    if found.fits:
        return []
    fit, budget = found.fit, found.budget
    quantised = replace(fit, quant="4bit")
    are_plain = fit.weights is not None and fit.weights.parameters is not None and not fit.shape.is_quantised
    can_quantise = fit.quant == "none" and are_plain
    rows = largest(lambda rows: quote(replace(fit, batch=rows), budget).fits, fit.most_rows - 1)
    tries = [_budget_advice(fit), f"--batch-size {rows}" if rows else ""]
    in_blocks = replace(fit, kernels="triton")
    if in_blocks.held_in != fit.held_in and quote(in_blocks, budget).fits:
        tries.append("--kernels triton")
    if can_quantise and quote(quantised, budget).fits:
        tries.append("--quant 4bit")
    if not any(tries) and can_quantise and (smaller := _budget_advice(quantised)):
        tries.append(f"--quant 4bit {smaller}")
    return [text for text in tries if text] or ["a smaller model, or a device with more memory"]


def _budget_advice(fit: Fit) -> str:
    """The largest round budget that fits beside everything else, empty where none does."""
    free = fit.free_for_cache
    if not free:
        return ""
    found = quote(fit, Budget.parse(short_size(free, up=False)))
    return f"--kv-budget {found.budget} (keeps {found.cache.slots:,} tokens)" if found.cache and found.fits else ""
