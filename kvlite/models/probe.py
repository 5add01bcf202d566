"""Feeding a loaded model a few tokens before anybody asks it anything, into a cache made for that."""

from __future__ import annotations

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.policies import Full
from kvlite.cache.policy import Policy
from kvlite.memory.allotment import HeadShares
from kvlite.memory.budget import Budget
from kvlite.memory.format import SlotFormat, slot_format
from kvlite.memory.plan import plan_cache
from kvlite.models.loaded import LoadedModel

_TEXT = "Anna had three apples and bought 4 more, so now she has"

PROBE_TOKENS = 12


def probe_ids(loaded: LoadedModel, count: int) -> Tensor:
    """`count` ids from all over the vocabulary, int64 [1, count], the same ones for every model of its size."""
    return torch.tensor([[(7919 * i + 11) % loaded.shape.vocab for i in range(count)]], device=loaded.device)


def text_ids(loaded: LoadedModel) -> Tensor:
    """The ids of a sentence, int64 [1, T], as many as the window takes; `probe_ids` where there is no tokenizer."""
    if loaded.tokenizer is None:  # a model that nobody talks to, in a test or a benchmark
        return probe_ids(loaded, PROBE_TOKENS)
    ids = loaded.tokenizer.encode(_TEXT)[: loaded.window]
    return torch.tensor([ids], device=loaded.device)


def dry_cache(
    loaded: LoadedModel,
    tokens: int,
    stored: SlotFormat | None = None,
    policy: Policy | None = None,
    kernels: str = "torch",
    head_shares: HeadShares | None = None,
) -> SlotCache:
    """One row of room for `tokens` tokens, in the model's own dtype and keeping all if not said otherwise."""
    stored, policy = stored or slot_format("auto", loaded.shape.dtype), policy or Full()
    spec = policy.cache_spec(stored, head_shares=head_shares)
    plan = plan_cache(loaded.shape, Budget.parse(f"{tokens}tok"), spec, free_bytes=None)
    return SlotCache(loaded.shape, plan, policy, stored, loaded.device, kernels, loaded.dtype)


def feed(loaded: LoadedModel, cache: SlotCache, ids: Tensor, shift: int = 0) -> Tensor:
    """Feed ids [1, T] in three chunks, the last of one token, rotated `shift` positions on -> logits [1, T, V]."""
    cache.reset(0)
    if loaded.state is not None:
        loaded.state.reset()
    pos = torch.arange(ids.shape[1], dtype=torch.int32, device=ids.device)[None]
    logits, start = [], 0
    for end in (ids.shape[1] * 3 // 5, ids.shape[1] - 1, ids.shape[1]):
        here = slice(start, end)
        step = cache.begin(slice(0, 1), pos[:, here], pos[:, here] + shift, (end - start,), None)
        logits.append(loaded.forward(ids[:, here], cache, step, last=end - start))
        start = end
    if loaded.state is not None:
        loaded.state.reset()
    return torch.cat(logits, 1)
