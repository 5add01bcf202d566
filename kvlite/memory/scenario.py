"""One model on one device, for planning: what a budget buys there, what fits, and what to change when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvlite.errors import CapacityError
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import SlotFormat, size_down
from kvlite.memory.plan import MOST_CHUNK, CachePlan, largest, plan_cache
from kvlite.memory.prediction import DeviceKind, MemoryPlan, Term, WeightFacts, cache_terms, other_terms
from kvlite.memory.shape import ModelShape

SWEEP = ("128MB", "256MB", "512MB", "1GB", "2GB", "4GB", "8GB", "16GB", "32GB", "64GB")
TURN_TOKENS = 300  # a question and its answer, for a rough count of turns
_MOST_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class Scenario:
    """What does not change while budgets are compared; `free_bytes` is the device before the weights are loaded."""

    shape: ModelShape
    slot_format: SlotFormat
    state_bytes_per_slot: int
    protected_slots: int
    evicts: bool
    rows: int
    weights: WeightFacts | None
    quant: str
    device: DeviceKind
    free_bytes: int | None

    def cache(self, budget: Budget) -> CachePlan:
        """What `budget` buys. Raises CapacityError where it is too small, or nothing is left beside the weights."""
        measures_free = budget.kind in (BudgetKind.AUTO, BudgetKind.SHARE)
        return plan_cache(
            self.shape,
            budget,
            slot_format=self.slot_format,
            state_bytes_per_slot=self.state_bytes_per_slot,
            rows=self.rows,
            free_bytes=self.free_for_cache if measures_free else None,
            protected_slots=self.protected_slots,
            evicts=self.evicts,
        )

    def memory(self, cache: CachePlan) -> MemoryPlan:
        """Every term of a run with `cache`: weights first, then the cache, then the rest."""
        weights, *rest = self._others(cache.chunk)
        return MemoryPlan((weights, *cache_terms(cache), *rest), self.free_bytes)

    @property
    def free_for_cache(self) -> int | None:
        """What is left for the cache beside the rest at its largest; None when free memory is unknown."""
        if self.free_bytes is None:
            return None
        return max(0, self.free_bytes - MemoryPlan(self._others(MOST_CHUNK), None).total_bytes)

    def _others(self, chunk: int) -> tuple[Term, ...]:
        return other_terms(self.shape, self.weights, quant=self.quant, device=self.device, rows=self.rows, chunk=chunk)

    def holds(self, budget: Budget) -> bool:
        """Whether `budget` can be honoured on this device."""
        try:
            return self.memory(self.cache(budget)).fits
        except CapacityError:
            return False


def most_rows(scenario: Scenario, budget: Budget, tokens: int) -> int:
    """The most rows that each keep `tokens` inside `budget` and the device; 0 when not even one does."""

    def fits(rows: int) -> bool:
        trial = replace(scenario, rows=rows)
        try:
            cache = trial.cache(budget)
        except CapacityError:
            return False
        return cache.slots >= tokens and trial.memory(cache).fits

    return largest(fits, _MOST_ROWS)


def sweep(scenario: Scenario) -> Iterator[tuple[Budget, CachePlan | None]]:
    """Round budgets and what each buys, up to the first that holds the whole window; None is too small."""
    for text in SWEEP:
        budget = Budget.parse(text)
        try:
            cache = scenario.cache(budget)
        except CapacityError:
            cache = None
        yield budget, cache
        if cache is not None and cache.capped_by is not None:
            return


def advice(scenario: Scenario, budget: Budget) -> list[str]:
    """Changes each of which makes it fit on its own; the last resort when none does."""
    quantised = replace(scenario, quant="4bit")
    can_quantise = scenario.quant == "none" and scenario.weights is not None and not scenario.weights.is_quantised
    tries = []
    if smaller := _fitting_budget(scenario):
        tries.append(f"--kv-budget {smaller} (keeps {scenario.cache(smaller).slots:,} tokens)")
    if can_quantise and quantised.holds(budget):
        tries.append("--quant 4bit")
    if scenario.rows > 1 and (rows := most_rows(scenario, budget, max(1, scenario.protected_slots))):
        tries.append(f"--batch-size {rows}")
    if not tries and can_quantise and (smaller := _fitting_budget(quantised)):
        tries.append(f"--quant 4bit --kv-budget {smaller} (keeps {quantised.cache(smaller).slots:,} tokens)")
    return tries or ["a smaller model, or a device with more memory"]


def _fitting_budget(scenario: Scenario) -> Budget | None:
    """The largest round budget that fits beside everything else."""
    free = scenario.free_for_cache
    if not free:
        return None
    budget = Budget.parse(size_down(free))
    return budget if scenario.holds(budget) else None
