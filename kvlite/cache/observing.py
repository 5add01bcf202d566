"""The queries that a policy learns from: those of a step, or the same once more from behind its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kvlite.cache.policy import Policy
from kvlite.cache.step import Echo
from kvlite_kernels.statistic import Observation

NEGLIGIBLE = 2.0**-24
"""A weight, as a share of that of the newest query, which a sum in fp32 does not tell from none."""

FAR = 2**30  # behind all positions

ASKED = 9
"""Positions between a text and its echo, as many as `Repeat the previous context exactly.` takes."""


def echo_of(pos: Tensor, counts: Sequence[int], behind: int = 0) -> Echo:
    """The echo of the last counts[i] tokens at `pos` int32 [n, T], as if they came again after a few words that ask.

    That is right after them, or so far `behind` the first of them. Rows of which none is echoed are left as they are.
    """
    to_first = [1 - count if count else FAR for count in counts]  # from the last of a row
    by, to_first = torch.tensor([[behind or count for count in counts], to_first], device=pos.device).int()[..., None]
    first = pos[:, -1:] + to_first
    is_echoed = pos >= first  # padding is on the left
    by = by + ASKED
    return Echo(torch.where(is_echoed, pos + by, -1), by[..., None], is_echoed.float(), first[..., None])


def observe(policy: Policy, pos: Tensor, to_come: Sequence[int] = ()) -> Observation | None:
    """The observation by `policy` of queries at `pos` int [n, T], None where it asks for none; padding counts nothing.

    A query weighs less by the policy's decay for each that follows it, nothing where it is too old to be observed or
    weighs less than NEGLIGIBLE, also for the `to_come[i]` tokens that follow in a row before anything is evicted;
    what keys received before is retained accordingly.
    """
    if policy.statistic is None or policy.echoes:
        return None
    weight, retention, queries = (pos >= 0).float(), None, policy.observed
    if policy.decay != 1.0 or policy.observed is not None:
        seen = weight.sum(-1)
        retention = policy.decay**seen
        if policy.observed is not None:
            retention = retention * (1.0 - seen / policy.observed).clamp(min=0.0)
        if pos.shape[1] > 1:
            following = torch.arange(pos.shape[1] - 1, -1, -1, device=pos.device)
            weight = weight * policy.decay**following
            if policy.observed is not None:
                weight = weight * (following < policy.observed)
            else:
                queries = math.ceil(math.log(NEGLIGIBLE) / math.log(policy.decay))
                more = torch.tensor([*to_come] or [0], device=pos.device)[:, None]
                weight = weight * (following + more < queries)
                queries = max(0, queries - min(to_come, default=0))
        retention = retention[:, None, None]
    return Observation(policy.statistic, weight, retention, policy.heads, policy.noise, queries)
