"""The statistics in plain torch: how much of each query's attention a key received, by several measures.

Each takes the logits of all segments and what normalises a query over all of them, and adds up per key. Letters as in
`reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvlite_kernels.kinds import Heads, Noise, Statistic

_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Observation:
    """A statistic as one step observes it: its `kind`, the `weight` fp32 [B, T] of each query, how heads are reduced.

    `retention` fp32 [B, 1, 1] is the share that stays of what keys received before, None for all of it. Only the last
    `queries` have a weight other than 0; None says nothing of that.
    """

    kind: Statistic
    weight: Tensor
    retention: Tensor | None = None
    heads: Heads = "mean"
    noise: Noise | None = None
    queries: int | None = None

    def first(self, num_queries: int) -> int:
        """The first of `num_queries` queries that may have a weight."""
        return 0 if self.queries is None else max(0, num_queries - self.queries)

    def add_to(self, known: Tensor, received: Tensor) -> None:
        """Update in place what keys are known by: what is retained of it, plus what they received."""
        if self.retention is not None:
            known.mul_(self.retention)
        known.add_(received)

    def of(self, queries: slice) -> Observation:
        """The same for some of the queries."""
        return replace(self, weight=self.weight[:, queries], queries=None)


def received(
    logits: Sequence[Tensor],
    lse: Tensor,
    q_pos: Tensor,
    k_pos: Sequence[Tensor],
    observation: Observation,
    num_kv_heads: int,
) -> list[Tensor]:
    """The statistic of each segment's keys [B, H_KV, N], summed over the queries by weight.

    `logits` [B, H_Q, T, N] and `k_pos` int [B, H_KV or 1, N] are of each segment; `lse` [B, H_Q, T] is the merged one,
    so that the masses of all segments and the sink logit sum to one per query.
    """
    if observation.kind is Statistic.MASS:
        shares = [probabilities(part, lse[..., None]) for part in logits]
    elif observation.kind is Statistic.BELOW:
        shares = _below(logits, lse)
    else:
        assert observation.kind is Statistic.GUMBEL and observation.noise is not None
        shares = _gumbel(logits, q_pos, k_pos, observation.noise)
    return [reduced(part, observation, num_kv_heads) for part in shares]


def probabilities(logits: Tensor, lse: Tensor) -> Tensor:
    """exp(logits - lse), zero where nothing is visible (lse -inf)."""
    return (logits - lse.masked_fill(lse == -torch.inf, 0.0)).exp_()


def gumbel(noise: Noise, num_heads: int, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Tensor:
    """Gumbel noise [B, H_Q, T, N] for `q_pos` [B, T] and `k_pos` [B, H_KV or 1, N]: -log(-log u), u of 23 bits.

    The words of the hash are chained by murmur3's finaliser, h <- mix(h ^ word), from the seed on.
    """
    heads = torch.arange(noise.first_head, noise.first_head + num_heads, device=q_pos.device)
    start = _mixed(torch.full((), (noise.seed + 0x9E3779B9) & _WORD, device=q_pos.device))  # no copy from the host
    of_head = _mixed(_mixed(start ^ noise.layer) ^ heads)  # [H_Q]
    of_query = _mixed(of_head[:, None] ^ (q_pos.long() & _WORD)[:, None])  # [B, H_Q, T]
    keys = k_pos.long() & _WORD
    if keys.shape[1] > 1:
        keys = keys.repeat_interleave(num_heads // keys.shape[1], 1)
    word = _mixed(of_query[..., None] ^ keys[:, :, None])
    uniform = ((word >> 9).to(dtype) + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def _below(logits: Sequence[Tensor], lse: Tensor) -> list[Tensor]:
    """1 for a key that is seen and gets less than an equal share, else 0."""
    seen = [part > -torch.inf for part in logits]
    count = sum(part.sum(-1) for part in seen)
    assert isinstance(count, Tensor)
    equal = (lse - count.to(lse.dtype).log())[..., None]
    return [(part & (x < equal)).to(x.dtype) for part, x in zip(seen, logits, strict=True)]


def _gumbel(logits: Sequence[Tensor], q_pos: Tensor, k_pos: Sequence[Tensor], noise: Noise) -> list[Tensor]:
    """A softmax of its own over the keys of all segments, of logits with noise at a temperature."""
    progress = (q_pos.to(logits[0].dtype) / noise.ramp).clamp(0.0, 1.0)
    temperature = (noise.first + (noise.last - noise.first) * progress)[:, None, :, None]
    noised = [
        (part + gumbel(noise, part.shape[1], q_pos, pos, part.dtype)) / temperature
        for part, pos in zip(logits, k_pos, strict=True)
    ]
    lse = torch.stack([part.logsumexp(-1) for part in noised]).logsumexp(0)
    return [probabilities(part, lse[..., None]) for part in noised]


def reduced(shares: Tensor, observation: Observation, num_kv_heads: int) -> Tensor:
    """[B, H_Q, T, N] -> fp32 [B, H_KV, N]. A maximum is taken per query, so that chunks do not change the sum."""
    batch, num_heads, num_queries, num_keys = shares.shape
    dtype = torch.promote_types(shares.dtype, torch.float32)
    weight = observation.weight.to(dtype)[:, None, None]  # [B, 1, 1, T]
    if observation.heads == "max":
        grouped = shares.view(batch, num_kv_heads, num_heads // num_kv_heads, num_queries, num_keys)
        return (weight @ grouped.amax(2).to(dtype)).squeeze(2)
    per_head = (weight @ shares.to(dtype)).squeeze(2)
    if observation.heads == "layer":
        return per_head.mean(1, keepdim=True).expand(-1, num_kv_heads, -1)
    return per_head.view(batch, num_kv_heads, num_heads // num_kv_heads, num_keys).mean(2)


def _mixed(word: Tensor) -> Tensor:
    """murmur3's 32-bit finaliser, on int64 that hold 32 bits."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _WORD
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _WORD
    return word ^ (word >> 16)
