"""Parts of all attention kernels, a tile at a time: logits, visibility, running softmax, shares of keys.

b_ is a value, p_ a pointer, o_ an offset, m_ a mask. STATISTIC names a member of `kinds.Statistic`, or is empty.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logits_of(b_q, b_k, scale, softcap, HAS_CAP: tl.constexpr):
    """Logits fp32 [M, N] of queries [M, D] and keys [N, D], soft-capped."""
    b_x = tl.dot(b_q, tl.trans(b_k.to(b_q.dtype)), input_precision="ieee") * scale
    if HAS_CAP:
        # tanh(y) = 1 - 2 / (exp(2 y) + 1), which is right for infinities too
        b_x = softcap * (1.0 - 2.0 / (tl.exp(b_x * (2.0 / softcap)) + 1.0))
    return b_x


@triton.jit
def sees(b_q_pos, b_k_pos, window):
    """Keys a query sees: at its own position or before, inside the window; positions of -1 take no part."""
    return (b_k_pos >= 0) & (b_k_pos <= b_q_pos) & (b_k_pos > b_q_pos - window)


@triton.jit
def or_zero(b_max):
    """A maximum to subtract: 0 where there is none, so that no infinity is taken from another."""
    return tl.where(b_max == float("-inf"), 0.0, b_max)


@triton.jit
def log_of(b_max, b_sum):
    """The log of a sum of exponentials held as maximum and scaled sum; -inf where nothing was added."""
    return tl.where(b_sum > 0.0, or_zero(b_max) + tl.log(tl.where(b_sum > 0.0, b_sum, 1.0)), float("-inf"))


@triton.jit
def share_of(b_x, b_norm, STATISTIC: tl.constexpr):
    """The share a query gives a key of logit `b_x` (-inf: unseen), by what normalises the query."""
    if STATISTIC == "below":
        b_share = ((b_x > float("-inf")) & (b_x < b_norm)).to(tl.float32)
    else:
        b_share = tl.exp(b_x - or_zero(b_norm))
    return b_share
