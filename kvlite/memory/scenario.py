"""One model on one device, for planning: what a budget buys there, what fits, and what to change when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvlite.errors import CapacityError
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import SlotFormat, human_bytes, size_down
from kvlite.memory.plan import MOST_CHUNK, CachePlan, largest, plan_cache
from kvlite.memory.prediction import DeviceKind, MemoryPlan, Term, WeightFacts, cache_terms, other_terms
from kvlite.memory.shape import ModelShape

SWEEP = ("128MB", "256MB", "512MB", "1GB", "2GB", "4GB", "8GB", "16GB", "32GB", "64GB")
TURN_TOKENS = 300  # a question and its answer, for a rough count of turns
MOST_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class Scenario:
    """What does not change while budgets are compared; `free_bytes` is the device before the weights are loaded."""

    shape: ModelShape
    slot_format: SlotFormat
    state_bytes_per_slot: int
    protected_slots: int
    evicts: bool
    weights: WeightFacts | None
    quant: str
    device: DeviceKind
    free_bytes: int | None
    rows: int = 1
    chunk_limit: int = MOST_CHUNK

    def cache(self, budget: Budget) -> CachePlan:
        """What `budget` buys. Raises CapacityError where that is too little."""
        measures_free = budget.kind in (BudgetKind.AUTO, BudgetKind.SHARE)
        return plan_cache(
            self.shape,
            budget,
            slot_format=self.slot_format,
            state_bytes_per_slot=self.state_bytes_per_slot,
            rows=self.rows,
            free_bytes=self.free_for_cache if measures_free else None,  # others may be asked for and found too large
            protected_slots=self.protected_slots,
            evicts=self.evicts,
            chunk_limit=self.chunk_limit,
        )

    def memory(self, cache: CachePlan) -> MemoryPlan:
        """Every term of a run with `cache`: weights first, then the cache, then the rest."""
        weights, *rest = self._others(cache.chunk)
        return MemoryPlan((weights, *cache_terms(cache), *rest), self.free_bytes)

    @property
    def beside_cache(self) -> MemoryPlan:
        """Everything but the cache, at its largest."""
        return MemoryPlan(self._others(min(self.chunk_limit, MOST_CHUNK)), self.free_bytes)

    @property
    def free_for_cache(self) -> int | None:
        """What is left for the cache beside the rest; None when free memory is unknown."""
        return None if self.free_bytes is None else max(0, self.free_bytes - self.beside_cache.total_bytes)

    def _others(self, chunk: int) -> tuple[Term, ...]:
        return other_terms(self.shape, self.weights, quant=self.quant, device=self.device, rows=self.rows, chunk=chunk)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of asking for `budget`: the cache and all terms, or why there is no such cache."""

    scenario: Scenario
    budget: Budget
    cache: CachePlan | None
    memory: MemoryPlan
    shortage: str | None
    """One line on what is missing; None when it fits."""

    @property
    def fits(self) -> bool:
        return self.shortage is None


def ask(scenario: Scenario, budget: Budget) -> Answer:
    """Whether `budget` can be had on the scenario's device, and what it buys."""
    rest = scenario.beside_cache
    free = human_bytes(scenario.free_bytes or 0)
    if not rest.fits:
        needed = human_bytes(rest.total_bytes)
        return Answer(scenario, budget, None, rest, f"it takes {needed} beside the cache, and {free} are free")
    try:
        cache = scenario.cache(budget)
    except CapacityError as error:
        return Answer(scenario, budget, None, rest, str(error))
    return Answer(scenario, budget, cache, scenario.memory(cache), _shortage(scenario, budget, cache))


def _shortage(scenario: Scenario, budget: Budget, cache: CachePlan) -> str | None:
    """Why the device cannot give the budget, even where the cache would not use all of it; None when it can."""
    left = scenario.free_for_cache
    wanted = max(cache.reserved_bytes, cache.budget_bytes)
    if left is None or wanted <= left:
        return None
    return f"KV budget {budget} is {human_bytes(wanted)}, and {human_bytes(left)} are left for it beside the rest"


def most_rows(scenario: Scenario, budget: Budget, tokens: int) -> int:
    """The most rows that each keep `tokens` inside `budget` and the device; 0 when not even one does."""

    def fits(rows: int) -> bool:
        answer = ask(replace(scenario, rows=rows), budget)
        return answer.fits and answer.cache is not None and answer.cache.slots >= tokens

    return largest(fits, 1 if scenario.shape.has_state else MOST_ROWS)


def sweep(scenario: Scenario) -> Iterator[Answer]:
    """What round budgets buy, up to the first that holds the model's whole window."""
    for text in SWEEP:
        answer = ask(scenario, Budget.parse(text))
        yield answer
        if answer.cache is not None and answer.cache.capped_by is not None:
            return


def advice(answer: Answer) -> list[str]:
    """Changes each of which makes it fit on its own; the last resort when none does, nothing when it fits."""
    if answer.fits:
        return []
    scenario, budget = answer.scenario, answer.budget
    quantised = replace(scenario, quant="4bit")
    can_quantise = scenario.quant == "none" and scenario.weights is not None and scenario.weights.can_quantise
    tries = [_budget_advice(scenario)]
    if can_quantise and ask(quantised, budget).fits:
        tries.append("--quant 4bit")
    if scenario.rows > 1 and (rows := most_rows(scenario, budget, max(1, scenario.protected_slots))):
        tries.append(f"--batch-size {rows}")
    if not any(tries) and can_quantise and (smaller := _budget_advice(quantised)):
        tries.append(f"--quant 4bit {smaller}")
    return [text for text in tries if text] or ["a smaller model, or a device with more memory"]


def _budget_advice(scenario: Scenario) -> str:
    """The largest round budget that fits beside everything else, empty where none does."""
    free = scenario.free_for_cache
    if not free:
        return ""
    answer = ask(scenario, Budget.parse(size_down(free)))
    return f"--kv-budget {answer.budget} (keeps {answer.cache.slots:,} tokens)" if answer.cache and answer.fits else ""
