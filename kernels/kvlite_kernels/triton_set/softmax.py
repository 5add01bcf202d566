"""A softmax that goes on from tile to tile of keys: what decode and prefill do with each of them."""

from __future__ import annotations

import triton
import triton.language as tl

from kvlite_kernels.triton_set.noise import noised
from kvlite_kernels.triton_set.scores import logits_of, or_zero, sees
from kvlite_kernels.triton_set.vectors import vectors


@triton.jit
def go_on(
    b_q, b_q_pos, b_heads, b_max, b_sum, b_out, b_norm_max, b_norm_sum,
    p_k, p_k_scale, p_v, p_v_scale, p_pos, o_n, m_n, s_k, s_v,
    scale, softcap, window, seed, layer, first, last, ramp,
    D: tl.constexpr, D_V: tl.constexpr, PAD_D: tl.constexpr, PAD_D_V: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr, RUN: tl.constexpr, RUN_V: tl.constexpr,
    HAS_CAP: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """Logits fp32 [M, N] of queries [M, D] and the keys `o_n` of a head, -inf where unseen, and the softmax with them.

    It is held as maximum, sum and unnormalised values; that of noisy logits, or the count of keys seen, as `b_norm`.
    """
    b_pos = tl.load(p_pos + o_n, mask=m_n, other=-1)
    b_k = vectors(p_k, p_k_scale, o_n, m_n, b_pos >= 0, s_k, D, PAD_D, BITS, GROUP, RUN)
    m_seen = sees(b_q_pos[:, None], b_pos[None, :], window)
    b_x = tl.where(m_seen, logits_of(b_q, b_k, scale, softcap, HAS_CAP), float("-inf"))
    b_new_max = tl.maximum(b_max, tl.max(b_x, 1))
    b_p = tl.exp(b_x - or_zero(b_new_max)[:, None])
    b_keep = tl.exp(b_max - or_zero(b_new_max))
    b_sum = b_sum * b_keep + tl.sum(b_p, 1)
    b_v = vectors(p_v, p_v_scale, o_n, m_n, b_pos >= 0, s_v, D_V, PAD_D_V, BITS, GROUP_V, RUN_V)
    b_out = b_out * b_keep[:, None] + tl.dot(b_p.to(b_q.dtype), b_v.to(b_q.dtype), input_precision="ieee")
    b_max = b_new_max
    if STATISTIC == "below":
        b_norm_sum += tl.sum(m_seen.to(tl.float32), 1)
    if STATISTIC == "gumbel":
        b_y = noised(b_x, seed, layer, b_heads, b_q_pos, b_pos, first, last, ramp)
        b_new_max = tl.maximum(b_norm_max, tl.max(b_y, 1))
        b_y = tl.sum(tl.exp(b_y - or_zero(b_new_max)[:, None]), 1)
        b_norm_sum = b_norm_sum * tl.exp(b_norm_max - or_zero(b_new_max)) + b_y
        b_norm_max = b_new_max
    return b_x, b_max, b_sum, b_out, b_norm_max, b_norm_sum
