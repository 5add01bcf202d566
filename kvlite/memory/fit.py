"""One model on one device: what a budget buys there, what fits, and what to change when it does not.

`kvlite plan`, a dry run and every run ask here, before the weights are loaded or beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvlite.errors import CapacityError
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS, human_bytes, size_down
from kvlite.memory.plan import (
    DEFAULT_ROW_SLOTS,
    MOST_CHUNK,
    CachePlan,
    CacheSpec,
    largest,
    least_slots,
    most_slots,
    plan_cache,
    plan_rows,
)
from kvlite.memory.prediction import (
    CUDA_CONTEXT_BYTES,
    TERMS_OF_LOADED,
    DeviceKind,
    MemoryPlan,
    Term,
    WeightFacts,
    activation_bytes,
    cache_terms,
    scratch_bytes,
    weight_term,
)
from kvlite.memory.shape import ModelShape

MOST_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class Fit:
    """The model, its device and the cache asked for there: all that stays while budgets are compared.

    `free_bytes` is what the device has before the weights are loaded, or beside them (`is_loaded`); None: unknown.
    `batch` is the most rows of a batch, None one conversation with the whole budget; `row_budget` is the budget of each
    row where one is given. `is_automatic`: the slot format may be another than that of
    `spec`, as `specs` says.
    """

    shape: ModelShape
    spec: CacheSpec
    weights: WeightFacts | None
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

    def memory(self, cache: CachePlan) -> MemoryPlan:
        """Every term of a run with `cache`: weights first, then the cache, then the rest."""
        weights, *rest = self._others(cache.rows, cache.chunk)
        return MemoryPlan((weights, *cache_terms(cache), *rest), self.free_bytes)

    @property
    def beside_cache(self) -> MemoryPlan:
        """Everything but the cache that `free_bytes` has to hold, at its largest."""
        terms = self._others(self.most_rows, self.spec.chunk_limit)
        held = TERMS_OF_LOADED if self.is_loaded else ()
        return MemoryPlan(tuple(term for term in terms if term.name not in held), self.free_bytes)

    @property
    def free_for_cache(self) -> int | None:
        """Bytes left for the cache beside the rest; None when free memory is unknown."""
        return None if self.free_bytes is None else max(0, self.free_bytes - self.beside_cache.total_bytes)

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

    def _others(self, rows: int, chunk: int) -> tuple[Term, ...]:
        """The terms beside the cache, the weights first, with chunks of `chunk` tokens a row."""
        fed = max(rows, min(rows * chunk, MOST_CHUNK))  # rows share the tokens of a pass, or decode one each
        activations = activation_bytes(self.shape, fed, self.spec.slot_format)
        scratch = scratch_bytes(self.shape, rows, self.quant)
        terms = (
            weight_term(self.shape, self.weights, self.quant),
            Term("activations", activations, f"one pass of {fed} tokens"),
            Term("scratch", scratch, "attention tiles and the logits of one step"),
        )
        context = Term("cuda_context", CUDA_CONTEXT_BYTES, "the driver's own; an estimate")
        return (*terms, context) if self.device == "cuda" else terms


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
    """Say what `budget` buys on the device of `fit`; a shortage is told, not raised."""
    spec = fit.specs(budget)[0]
    spent = replace(fit, spec=spec)
    rest = spent.beside_cache
    if not rest.fits:
        free, needed = human_bytes(fit.free_bytes or 0), human_bytes(rest.total_bytes)
        return Quote(fit, budget, spec, None, rest, f"it takes {needed} beside the cache, and {free} are free")
    try:
        cache = spent._nominal(budget)
    except CapacityError as error:
        return Quote(fit, budget, spec, None, rest, str(error))
    return Quote(fit, budget, spec, cache, spent.memory(cache), _shortage(spent, budget, cache))


def _shortage(fit: Fit, budget: Budget, cache: CachePlan) -> str | None:
    """Say why the device cannot give the budget, even where the cache would not use all of it; None when it can."""
    left = fit.free_for_cache
    wanted = max(cache.reserved_bytes, cache.budget_bytes)
    if left is None or wanted <= left:
        return None
    return f"KV budget {budget} is {human_bytes(wanted)}, and {human_bytes(left)} are left for it beside the rest"


def most_rows(fit: Fit, budget: Budget, tokens: int) -> int:
    """The most rows that each keep `tokens` inside `budget` and the device; 0 when not even one does."""
    return largest(lambda rows: _holds(fit, budget, rows, tokens), 1 if fit.shape.has_state else MOST_ROWS)


def most_tokens(fit: Fit, budget: Budget) -> int:
    """The most tokens that every row of a batch of exactly `most_rows` keeps; 0 when that many rows hold none."""
    cap = most_slots(fit.shape, fit.spec)
    return largest(lambda tokens: _holds(fit, budget, fit.most_rows, tokens), cap)


def _holds(fit: Fit, budget: Budget, rows: int, tokens: int) -> bool:
    """True if exactly `rows` rows keep `tokens` each, or the few more that are protected."""
    per_sequence = Budget(BudgetKind.TOKENS, max(tokens, least_slots(fit.shape, fit.spec)))
    found = quote(fit.with_rows(rows, per_sequence), budget)
    return found.fits and found.cache is not None and found.cache.rows == rows and found.cache.slots >= tokens


def advice(found: Quote) -> list[str]:
    """Changes each of which makes it fit on its own; the last resort when none does, nothing when it fits."""
    if found.fits:
        return []
    fit, budget = found.fit, found.budget
    quantised = replace(fit, quant="4bit")
    can_quantise = fit.quant == "none" and fit.weights is not None and fit.weights.can_quantise
    tries = [_budget_advice(fit), _rows_advice(fit, budget)]
    if can_quantise and quote(quantised, budget).fits:
        tries.append("--quant 4bit")
    if not any(tries) and can_quantise and (smaller := _budget_advice(quantised)):
        tries.append(f"--quant 4bit {smaller}")
    return [text for text in tries if text] or ["a smaller model, or a device with more memory"]


def _rows_advice(fit: Fit, budget: Budget) -> str:
    """The most rows that fit, fewer than asked for; empty where none do."""
    rows = largest(lambda rows: quote(fit.with_rows(rows), budget).fits, fit.most_rows - 1)
    return f"--batch-size {rows}" if rows else ""


def _budget_advice(fit: Fit) -> str:
    """The largest round budget that fits beside everything else, empty where none does."""
    free = fit.free_for_cache
    if not free:
        return ""
    found = quote(fit, Budget.parse(size_down(free)))
    return f"--kv-budget {found.budget} (keeps {found.cache.slots:,} tokens)" if found.cache and found.fits else ""
