"""The cache that a policy asks for, whatever its size. Loads no torch."""

from __future__ import annotations

from kvlite.cache.policy import Policy
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import MOST_CHUNK, CacheSpec, equally


def cache_spec(
    policy: Policy, stored: SlotFormat, on_full: str | None = None, chunk_limit: int = MOST_CHUNK
) -> CacheSpec:
    """Slots of `stored` for `policy`, fed at most `chunk_limit` prompt tokens at once.

    `on_full` is what happens when they are full, None as the policy does. Raises UsageError where the two contradict.
    """
    evicts = policy.when_full(on_full) == "evict"
    return CacheSpec(
        stored,
        policy.state_bytes_per_slot,
        policy.min_slots(),
        evicts=evicts,
        chunk_limit=chunk_limit,
        layer_rule=policy.layer_slots if evicts else equally,
    )
