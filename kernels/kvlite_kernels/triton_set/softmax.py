"""Parts of all attention kernels: logits, visibility, noise, a softmax that goes on, shares of keys.

b_ is a value, p_ a pointer, o_ an offset, m_ a mask. STATISTIC names a member of `kinds.Statistic`, or is empty.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvlite_kernels.triton_set.vectors import head_of, vectors


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


@triton.jit
def mixed(b_word):
    """murmur3's 32-bit finaliser, as in `statistic`."""
    b_word = (b_word ^ (b_word >> 16)) * 0x85EBCA6B
    b_word = (b_word ^ (b_word >> 13)) * 0xC2B2AE35
    return b_word ^ (b_word >> 16)


@triton.jit
def noised(b_x, seed, layer, first_head, b_heads, b_q_pos, b_k_pos, first, last, ramp):
    """(x + noise) / temperature of logits [M, N], as `statistic.gumbel`; `b_heads` are [M], or one head.

    They are counted from `first_head` on. Positions are [M] of queries and [N] of keys.
    """
    b_word = mixed(seed.to(tl.uint32) + 0x9E3779B9)
    b_word = mixed(mixed(b_word ^ layer.to(tl.uint32)) ^ (first_head + b_heads).to(tl.uint32))
    b_word = mixed(b_word ^ b_q_pos.to(tl.uint32))
    b_word = mixed(b_word[:, None] ^ b_k_pos.to(tl.uint32)[None, :])
    b_uniform = ((b_word >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    b_noise = -tl.log(-tl.log(b_uniform))
    progress = tl.minimum(tl.maximum(b_q_pos.to(tl.float32) / ramp, 0.0), 1.0)
    temperature = first + (last - first) * progress
    return (b_x + b_noise) / temperature[:, None]


@triton.jit
def walk(
    b_q, b_q_pos, b_heads, b_max, b_sum, b_out, b_norm_max, b_norm_sum,
    p_k, p_k_scale, p_v, p_v_scale, p_pos, p_bias, first_k, first_v, s_k, s_v, begin, end, p_logits, m_logits,
    scale, softcap, window, seed, layer, first_head, first, last, ramp,
    D: tl.constexpr, D_V: tl.constexpr, PAD_D: tl.constexpr, PAD_D_V: tl.constexpr,
    BITS: tl.constexpr, BITS_V: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr,
    RUN: tl.constexpr, RUN_V: tl.constexpr, KEYS: tl.constexpr, HAS_CAP: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """Add keys `begin` to `end` of a head to the softmax of queries [M, D], which goes on from tile to tile.

    It is held as maximum, sum and unnormalised values; that of noisy logits, or the count of keys seen, as `b_norm`.
    Logits, -inf where unseen, go to the rows at `p_logits` [M] where these are given, with the keys' bias where
    there is one.
    """
    p_k, p_k_scale = head_of(p_k, p_k_scale, first_k, D, BITS, GROUP)
    p_v, p_v_scale = head_of(p_v, p_v_scale, first_v, D_V, BITS_V, GROUP_V)
    for start in range(begin, end, KEYS):
        o_n = start + tl.arange(0, KEYS)
        m_n = o_n < end
        b_pos = tl.load(p_pos + o_n, mask=m_n, other=-1)
        b_k = vectors(p_k, p_k_scale, o_n, m_n, b_pos >= 0, s_k, D, PAD_D, BITS, GROUP, RUN)
        m_seen = sees(b_q_pos[:, None], b_pos[None, :], window)
        b_x = logits_of(b_q, b_k, scale, softcap, HAS_CAP)
        if p_bias is not None:
            b_x += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        b_x = tl.where(m_seen, b_x, float("-inf"))
        if p_logits is not None:
            tl.store(p_logits[:, None] + o_n[None, :], b_x, mask=m_logits[:, None] & m_n[None, :])
        b_new_max = tl.maximum(b_max, tl.max(b_x, 1))
        b_p = tl.exp(b_x - or_zero(b_new_max)[:, None])
        b_keep = tl.exp(b_max - or_zero(b_new_max))
        b_sum = b_sum * b_keep + tl.sum(b_p, 1)
        b_v = vectors(p_v, p_v_scale, o_n, m_n, b_pos >= 0, s_v, D_V, PAD_D_V, BITS_V, GROUP_V, RUN_V)
        b_out = b_out * b_keep[:, None] + tl.dot(b_p.to(b_q.dtype), b_v.to(b_q.dtype), input_precision="ieee")
        b_max = b_new_max
        if STATISTIC == "below":
            b_norm_sum += tl.sum(m_seen.to(tl.float32), 1)
        if STATISTIC == "gumbel":
            b_y = noised(b_x, seed, layer, first_head, b_heads, b_q_pos, b_pos, first, last, ramp)
            b_new_max = tl.maximum(b_norm_max, tl.max(b_y, 1))
            b_y = tl.sum(tl.exp(b_y - or_zero(b_new_max)[:, None]), 1)
            b_norm_sum = b_norm_sum * tl.exp(b_norm_max - or_zero(b_new_max)) + b_y
            b_norm_max = b_new_max
    return b_max, b_sum, b_out, b_norm_max, b_norm_sum
