"""The counts of a KV cache, the same on screen, in JSON and in reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVCounts:
    """Bytes and tokens in the slots of a row, or of a whole cache.

    `live_bytes` is live slots times slot bytes; `tokens_kept` is the mean of live slots over the KV heads of
    full-attention layers; `tokens_evicted` is seen minus kept. `full_heads` of these `heads` have no slot free, so they
    evict. Scripts rely on these names.
    """

    budget_bytes: int
    reserved_bytes: int
    live_bytes: int
    peak_bytes: int
    tokens_seen: int
    tokens_kept: int
    tokens_evicted: int
    policy: str
    dtype: str
    full_heads: int = 0
    heads: int = 0
