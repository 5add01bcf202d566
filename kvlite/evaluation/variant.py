"""A variant to compare: a policy, the format of its slots and a budget; and the engine that runs it on a model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from kvlite.cache.policy import Policy, load_policy
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import human_bytes, slot_format
from kvlite.memory.plan import MOST_CHUNK, CachePlan, CacheSpec, plan_cache, plan_for, plan_row, stages

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.llm.text_model import TextModel
    from kvlite.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy with its parameters, and the budget of one conversation.

    A share is one of the bytes that an unbounded cache takes for the longest item of the suite, as `place` is told;
    None is room for everything, the reference. `kv_dtype` auto is the model's own dtype there, and what kvlite takes by
    itself for a budget elsewhere. `chunk_limit` is the most prompt tokens fed at once.
    """

    policy: Policy
    budget: Budget | None = None
    kv_dtype: str = "auto"
    chunk_limit: int = MOST_CHUNK

    @property
    def is_reference(self) -> bool:
        return self.budget is None

    @property
    def name(self) -> str:
        """The policy with the settings that differ from its own defaults, and the slot format where one is asked."""
        return str(self.policy) if self.kv_dtype == "auto" else f"{self.policy} {self.kv_dtype}"

    def place(self, model: TextModel, tokens: int) -> Placed:
        """Plan the variant on a model where the longest item has `tokens` tokens.

        Raises CapacityError where the budget is too small for the policy.
        """
        shape = model.loaded.shape
        budget = self.budget or Budget(BudgetKind.TOKENS, tokens)
        if budget.kind is BudgetKind.SHARE:
            size = int(Fraction(budget.amount) * shape.full_cache_bytes(tokens))
            budget = Budget(BudgetKind.BYTES, size, str(budget))
        if self.kv_dtype == "auto" and self.budget is not None:
            stored = model.slot_format(self.policy, budget)
        else:
            stored = slot_format(self.kv_dtype, shape.dtype)
        profile = None if self.is_reference else model.head_profile()
        spec = self.policy.cache_spec(stored, chunk_limit=self.chunk_limit, head_shares=profile)
        return Placed(self, spec, plan_for(tokens, stages(plan_row(shape, budget, spec, free_bytes=None))))


REFERENCE = Variant(load_policy("full"))


@dataclass(frozen=True, slots=True)
class Placed:
    """A variant on one model: the cache of one row, as it is for the longest item."""

    variant: Variant
    spec: CacheSpec
    plan: CachePlan

    @property
    def budget_text(self) -> str:
        """The budget for reading: the share it is, and its bytes."""
        if self.variant.budget is None:
            return "everything"
        size = human_bytes(self.plan.budget_bytes)
        return f"{self.variant.budget} = {size}" if self.variant.budget.kind is not BudgetKind.BYTES else size

    def key(self) -> dict[str, object]:
        """Everything that decides how this answers."""
        return {
            "policy": repr(self.variant.policy),
            "kv_dtype": self.spec.slot_format.name,
            "slots": self.plan.slots,
            "head_slots": [list(heads) for heads in self.plan.head_slots],
            "chunk": self.plan.chunk,
        }

    def open(self, loaded: LoadedModel, rows: int) -> Engine:
        """An engine with a new cache of `rows` such rows. Raises OutOfMemory where it cannot be allocated."""
        from kvlite.engine.engine import Engine

        budget = Budget(BudgetKind.TOKENS, self.plan.slots)
        plan = plan_cache(loaded.shape, budget, self.spec, rows=rows, free_bytes=None, most=self.plan.until)
        return Engine(loaded, plan, self.variant.policy, self.spec.slot_format)
