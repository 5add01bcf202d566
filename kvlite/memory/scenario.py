"""One model on one device, for planning: what a budget buys there, what fits, and what to change when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvlite.errors import CapacityError
from kvlite.memory.automatic import automatic_formats
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import human_bytes, size_down
from kvlite.memory.plan import CachePlan, CacheSpec, largest, least_slots, most_slots, plan_cache
from kvlite.memory.prediction import DeviceKind, MemoryPlan, Term, WeightFacts, cache_terms, other_terms
from kvlite.memory.rows import plan_rows
from kvlite.memory.shape import ModelShape

SWEEP = ("128MB", "256MB", "512MB", "1GB", "2GB", "4GB", "8GB", "16GB", "32GB", "64GB")
TURN_TOKENS = 300  # a question and its answer, for a rough count of turns
MOST_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class BatchRows:
    """A batch of at most `most` rows, each with `per_sequence` where that is given."""

    most: int
    per_sequence: Budget | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """What does not change while budgets are compared; `free_bytes` is the device before the weights are loaded."""

    shape: ModelShape
    spec: CacheSpec
    weights: WeightFacts | None
    quant: str
    device: DeviceKind
    free_bytes: int | None
    batch: BatchRows | None = None
    """None is one conversation with the whole budget, as `run` and `chat` hold it."""
    is_automatic: bool = False
    """Whether the slot format may be another than that of `spec`, as `automatic_formats` says."""

    @property
    def most_rows(self) -> int:
        """Rows that may run at once; the state of hybrids would take in the padding of neighbouring rows."""
        return 1 if self.batch is None or self.shape.has_state else self.batch.most

    def with_rows(self, most: int, per_sequence: Budget | None = None) -> Scenario:
        """The same for a batch of at most `most` rows, each with `per_sequence` or what was given for it before."""
        before = self.batch.per_sequence if self.batch is not None else None
        return replace(self, batch=BatchRows(most, per_sequence or before))

    def in_format_for(self, budget: Budget) -> Scenario:
        """The same in the slot format that `budget` is spent in, where the model allows it."""
        if not self.is_automatic:
            return self
        per_sequence = self.batch.per_sequence if self.batch is not None else None
        specs = automatic_formats(
            self.shape,
            self.spec,
            budget,
            per_sequence,
            lambda spec: replace(self, spec=spec).cache(budget),
            with_rows=self.batch is not None,
        )
        return replace(self, spec=specs[0])

    def cache(self, budget: Budget) -> CachePlan:
        """What `budget` buys. Raises CapacityError where that is too little."""
        measures_free = budget.kind in (BudgetKind.AUTO, BudgetKind.SHARE)
        if self.batch is None:  # a size may be asked for and found too large
            return plan_cache(self.shape, budget, self.spec, free_bytes=self.free_for_cache if measures_free else None)
        free_bytes = self.free_for_cache if measures_free or budget.kind is BudgetKind.FULL else None
        return plan_rows(
            self.shape, budget, self.batch.per_sequence, self.spec, most_rows=self.most_rows, free_bytes=free_bytes
        )

    def memory(self, cache: CachePlan) -> MemoryPlan:
        """Every term of a run with `cache`: weights first, then the cache, then the rest."""
        weights, *rest = self._others(cache.rows, cache.chunk)
        return MemoryPlan((weights, *cache_terms(cache), *rest), self.free_bytes)

    @property
    def beside_cache(self) -> MemoryPlan:
        """Everything but the cache, at its largest."""
        return MemoryPlan(self._others(self.most_rows, self.spec.chunk_limit), self.free_bytes)

    @property
    def free_for_cache(self) -> int | None:
        """What is left for the cache beside the rest; None when free memory is unknown."""
        return None if self.free_bytes is None else max(0, self.free_bytes - self.beside_cache.total_bytes)

    def _others(self, rows: int, chunk: int) -> tuple[Term, ...]:
        return other_terms(
            self.shape,
            self.weights,
            quant=self.quant,
            device=self.device,
            rows=rows,
            chunk=chunk,
            stored=self.spec.slot_format,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of asking for `budget`: the cache, made as `spec` says, and all terms, or why there is no cache."""

    scenario: Scenario
    budget: Budget
    spec: CacheSpec
    cache: CachePlan | None
    memory: MemoryPlan
    shortage: str | None
    """One line on what is missing; None when it fits."""

    @property
    def fits(self) -> bool:
        return self.shortage is None

    @property
    def takes_another_format(self) -> bool:
        """Whether `auto` chose another slot format than the model's dtype."""
        return self.spec.slot_format != self.scenario.spec.slot_format


def ask(scenario: Scenario, budget: Budget) -> Answer:
    """Whether `budget` can be had on the scenario's device, and what it buys."""
    spent = scenario.in_format_for(budget)
    rest = spent.beside_cache
    free = human_bytes(scenario.free_bytes or 0)
    if not rest.fits:
        needed = human_bytes(rest.total_bytes)
        return Answer(
            scenario, budget, spent.spec, None, rest, f"it takes {needed} beside the cache, and {free} are free"
        )
    try:
        cache = spent.cache(budget)
    except CapacityError as error:
        return Answer(scenario, budget, spent.spec, None, rest, str(error))
    return Answer(scenario, budget, spent.spec, cache, spent.memory(cache), _shortage(spent, budget, cache))


def _shortage(scenario: Scenario, budget: Budget, cache: CachePlan) -> str | None:
    """Why the device cannot give the budget, even where the cache would not use all of it; None when it can."""
    left = scenario.free_for_cache
    wanted = max(cache.reserved_bytes, cache.budget_bytes)
    if left is None or wanted <= left:
        return None
    return f"KV budget {budget} is {human_bytes(wanted)}, and {human_bytes(left)} are left for it beside the rest"


def most_rows(scenario: Scenario, budget: Budget, tokens: int) -> int:
    """The most rows that each keep `tokens` inside `budget` and the device; 0 when not even one does."""
    return largest(lambda rows: _holds(scenario, budget, rows, tokens), 1 if scenario.shape.has_state else MOST_ROWS)


def most_tokens(scenario: Scenario, budget: Budget) -> int:
    """The most tokens that every row of a batch of exactly `most_rows` keeps; 0 when that many rows hold none."""
    cap = most_slots(scenario.shape, scenario.spec)
    return largest(lambda tokens: _holds(scenario, budget, scenario.most_rows, tokens), cap)


def _holds(scenario: Scenario, budget: Budget, rows: int, tokens: int) -> bool:
    """Whether exactly `rows` rows keep `tokens` each, or the few more that are protected."""
    per_sequence = Budget(BudgetKind.TOKENS, max(tokens, least_slots(scenario.shape, scenario.spec)))
    answer = ask(scenario.with_rows(rows, per_sequence), budget)
    return answer.fits and answer.cache is not None and answer.cache.rows == rows and answer.cache.slots >= tokens


def sweep(scenario: Scenario) -> Iterator[Answer]:
    """What round budgets buy, up to the first that holds the model's whole window in its own dtype."""
    for text in SWEEP:
        answer = ask(scenario, Budget.parse(text))
        yield answer
        if answer.cache is not None and answer.cache.capped_by is not None and not answer.takes_another_format:
            return


def advice(answer: Answer) -> list[str]:
    """Changes each of which makes it fit on its own; the last resort when none does, nothing when it fits."""
    if answer.fits:
        return []
    scenario, budget = answer.scenario, answer.budget
    quantised = replace(scenario, quant="4bit")
    can_quantise = scenario.quant == "none" and scenario.weights is not None and scenario.weights.can_quantise
    tries = [_budget_advice(scenario), _rows_advice(scenario, budget)]
    if can_quantise and ask(quantised, budget).fits:
        tries.append("--quant 4bit")
    if not any(tries) and can_quantise and (smaller := _budget_advice(quantised)):
        tries.append(f"--quant 4bit {smaller}")
    return [text for text in tries if text] or ["a smaller model, or a device with more memory"]


def _rows_advice(scenario: Scenario, budget: Budget) -> str:
    """The most rows that fit, fewer than asked for; empty where none do."""
    rows = largest(lambda rows: ask(scenario.with_rows(rows), budget).fits, scenario.most_rows - 1)
    return f"--batch-size {rows}" if rows else ""


def _budget_advice(scenario: Scenario) -> str:
    """The largest round budget that fits beside everything else, empty where none does."""
    free = scenario.free_for_cache
    if not free:
        return ""
    answer = ask(scenario, Budget.parse(size_down(free)))
    return f"--kv-budget {answer.budget} (keeps {answer.cache.slots:,} tokens)" if answer.cache and answer.fits else ""
