"""One model on one device: what a budget buys there, what fits, and what to change when it does not.

`kvlite plan`, a dry run and every run ask here, before the weights are loaded or beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvlite.errors import CapacityError
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS, human_bytes, size_down
from kvlite.memory.plan import DEFAULT_ROW_SLOTS, CachePlan, CacheSpec, largest, plan_cache, plan_rows
from kvlite.memory.prediction import DeviceKind, MemoryPlan, Weights, cache_terms, pass_terms, weight_term
from kvlite.memory.shape import ModelShape

MOST_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class Fit:
    """The model, its device and the cache asked for there: all that stays while budgets are compared.

    `free_bytes` is what the device has before the weights are loaded, or beside them (`is_loaded`); None: unknown.
    `batch` is the most rows of a batch, None one conversation with the whole budget; `row_budget` is the budget of each
    row where one is given. `is_automatic`: the slot format may be another than that of `spec`, as `specs` says.
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

    @property
    def most_rows(self) -> int:
        """Rows that may run at once; the state of hybrids would take in the padding of neighbouring rows."""
        return 1 if self.batch is None or self.shape.has_state else self.batch

    def with_rows(self, most: int, row_budget: Budget | None = None) -> Fit:
        """The same for a batch of at most `most` rows, each with `row_budget` or what was given for it before."""
        return replace(self, batch=most, row_budget=row_budget or self.row_budget)

    def specs(self, budget: Budget) -> tuple[CacheSpec, ...]:
        """Candidate caches to spend `budget` on, preferred first; the last needs no check on the loaded model.

        As docs/fidelity.md measured it: the model's own dtype where the budget holds the whole window in it, because
        nothing is lost then; else the more exact of int8 and int4 that holds the window; else int4. At equal bytes four
        bits keep more of a conversation than any policy does in sixteen. Rows without a budget of their own should hold
        DEFAULT_ROW_SLOTS.
        """
        is_of_bytes = (self.row_budget or budget).kind in (BudgetKind.BYTES, BudgetKind.SHARE, BudgetKind.AUTO)
        if not self.is_automatic or not is_of_bytes:
            return (self.spec,)
        tried: list[CacheSpec] = []
        for spec in (self.spec, *(replace(self.spec, slot_format=FORMATS[name]) for name in ("int8", "int4"))):
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

    def memory(self, cache: CachePlan | None) -> MemoryPlan:
        """Every term of a run with `cache`, weights first; without one, all that lies beside a cache at its largest."""
        rows, chunk = (cache.rows, cache.chunk) if cache else (self.most_rows, self.spec.chunk_limit)
        weights = weight_term(self.shape, self.weights, self.quant)
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
        if self.batch is None:
            return plan_cache(self.shape, budget, self.spec, free_bytes=free_bytes)
        return plan_rows(
            self.shape, budget, self.row_budget, self.spec, most_rows=self.most_rows, free_bytes=free_bytes
        )


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


def most_rows(fit: Fit, budget: Budget, tokens: int) -> int:
    """The most rows that each keep `tokens` inside `budget` and the device; 0 when not even one does."""
    return largest(lambda rows: _holds(fit, budget, rows, tokens), 1 if fit.shape.has_state else MOST_ROWS)


def most_tokens(fit: Fit, budget: Budget) -> int:
    """The most tokens that every row of a batch of exactly `most_rows` keeps; 0 when that many rows hold none."""
    return largest(lambda tokens: _holds(fit, budget, fit.most_rows, tokens), fit.spec.most_slots(fit.shape))


def _holds(fit: Fit, budget: Budget, rows: int, tokens: int) -> bool:
    """True if exactly `rows` rows keep `tokens` each, or the few more that are protected."""
    per_sequence = Budget(BudgetKind.TOKENS, max(tokens, fit.spec.least_slots(fit.shape)))
    found = quote(fit.with_rows(rows, per_sequence), budget)
    return found.fits and found.cache is not None and found.cache.rows == rows and found.cache.slots >= tokens


def advice(found: Quote) -> list[str]:
    """Changes each of which makes it fit on its own; the last resort when none does, nothing when it fits."""
    if found.fits:
        return []
    fit, budget = found.fit, found.budget
    quantised = replace(fit, quant="4bit")
    are_plain = fit.weights is not None and fit.weights.parameters is not None and not fit.shape.is_quantised
    can_quantise = fit.quant == "none" and are_plain
    rows = largest(lambda rows: quote(fit.with_rows(rows), budget).fits, fit.most_rows - 1)
    tries = [_budget_advice(fit), f"--batch-size {rows}" if rows else ""]
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
    found = quote(fit, Budget.parse(size_down(free)))
    return f"--kv-budget {found.budget} (keeps {found.cache.slots:,} tokens)" if found.cache and found.fits else ""
