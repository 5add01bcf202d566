"""What a command's options ask of the cache, and what the memory of a device makes of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlite.memory.plan import CachePlan, CacheSpec
    from kvlite.memory.shape import ModelShape
    from kvlite.options import ModelOptions

ROWS_ON_CPU = 8
ROWS_ON_GPU = 64
"""Rows of a batch where the user names no number and the budget holds as many."""


@dataclass(frozen=True, slots=True)
class Room:
    """The memory beside the weights of a model of `shape`, and the cache that `options` want there.

    One row has the whole budget, or there are as many as it holds (`with_rows`), at most `batch_size`; None leaves
    their number to the device. `free_bytes` is what the weights leave; what a run needs besides the cache is taken off.
    """

    options: ModelOptions
    shape: ModelShape
    free_bytes: int
    device: str
    with_rows: bool = False
    batch_size: int | None = None

    def specs(self) -> tuple[CacheSpec, ...]:
        """The caches to try, of which the first is wanted and the last needs nothing of the model."""
        from kvlite.memory.automatic import automatic_formats
        from kvlite.memory.budget import Budget

        spec, options = cache_spec(self.options, self.shape), self.options
        if options.kv_dtype != "auto":
            return (spec,)
        per_sequence = Budget.parse(options.kv_per_seq) if self.with_rows and options.kv_per_seq else None
        total = Budget.parse(options.kv_budget)
        return automatic_formats(self.shape, spec, total, per_sequence, self.plan, with_rows=self.with_rows)

    def plan(self, spec: CacheSpec) -> CachePlan:
        """What the options buy of `spec`. Raises the CapacityError that says what is missing."""
        from kvlite.memory.budget import Budget
        from kvlite.memory.plan import plan_cache
        from kvlite.memory.prediction import working_bytes
        from kvlite.memory.rows import plan_rows

        options, budget, rows = self.options, Budget.parse(self.options.kv_budget), self._most_rows
        beside = working_bytes(
            self.shape, rows=rows, chunk=options.prefill_chunk, quant=options.quant, stored=spec.slot_format
        )
        left = max(0, self.free_bytes - beside)
        if not self.with_rows:
            return plan_cache(self.shape, budget, spec, free_bytes=left)
        per_sequence = Budget.parse(options.kv_per_seq) if options.kv_per_seq else None
        return plan_rows(self.shape, budget, per_sequence, spec, most_rows=rows, free_bytes=left)

    @property
    def _most_rows(self) -> int:
        if self.shape.has_state or not self.with_rows:
            return 1  # the state of hybrids would take in the padding of neighbouring rows
        return self.batch_size or (ROWS_ON_GPU if self.device == "cuda" else ROWS_ON_CPU)


def cache_spec(options: ModelOptions, shape: ModelShape) -> CacheSpec:
    """The cache that these options ask for, whatever its size; a format that is left open is the model's dtype."""
    from kvlite.cache.policy import load_policy
    from kvlite.memory.allotment import equally
    from kvlite.memory.format import slot_format
    from kvlite.memory.plan import CacheSpec

    policy = load_policy(options.kv_policy)
    evicts = policy.when_full(options.on_full) == "evict"
    return CacheSpec(
        slot_format(options.kv_dtype, shape.dtype),
        policy.state_bytes_per_slot,
        policy.min_slots(),
        evicts=evicts,
        chunk_limit=options.prefill_chunk,
        layer_rule=policy.layer_slots if evicts else equally,
        keeps_order=evicts and policy.keeps_order(options.kernels),
    )
