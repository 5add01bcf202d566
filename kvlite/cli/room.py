"""What a command's options ask of the cache, and what the memory of a device makes of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlite.memory.fit import Fit
    from kvlite.memory.plan import CacheSpec
    from kvlite.memory.prediction import DeviceKind, WeightFacts
    from kvlite.memory.shape import ModelShape
    from kvlite.options import ModelOptions

ROWS_ON_CPU = 8
ROWS_ON_GPU = 64
"""Rows of a batch where the user names no number and the budget holds as many."""


def fit_of(
    options: ModelOptions,
    shape: ModelShape,
    free_bytes: int,
    device: str,
    *,
    weights: WeightFacts | None,
    is_loaded: bool,
    with_rows: bool = False,
    batch_size: int | None = None,
) -> Fit:
    """The cache that `options` want on a device: one row of the whole budget, or `with_rows` as many as it holds.

    `batch_size` caps the rows, None leaves their number to the device. `is_loaded`: `free_bytes` is what the weights
    leave.
    """
    from kvlite.memory.budget import Budget
    from kvlite.memory.fit import BatchRows, Fit

    kind: DeviceKind = "cuda" if device == "cuda" else "cpu"
    batch = None
    if with_rows:
        row_budget = Budget.parse(options.kv_per_seq) if options.kv_per_seq else None
        batch = BatchRows(batch_size or (ROWS_ON_GPU if kind == "cuda" else ROWS_ON_CPU), row_budget)
    return Fit(
        shape=shape,
        spec=cache_spec(options, shape),
        weights=weights,
        quant=options.quant,
        device=kind,
        free_bytes=free_bytes,
        batch=batch,
        is_automatic=options.kv_dtype == "auto",
        is_loaded=is_loaded,
    )


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
