"""Attention of one query per head over the slots, split over the keys: `split`, then `finish` joins the parts exactly.

Where a statistic is kept, `split` also writes the logits, so that `finish` gives every key its own without reading the
keys again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvlite_kernels.triton_set.softmax import log_of, noised, or_zero, share_of, walk
from kvlite_kernels.triton_set.vectors import channels, queries


@triton.jit(
    do_not_specialize=[
        "window", "num_keys", "keys_per_split", "logits_width", "num_splits", "seed", "layer", "first_head",
    ]
)  # fmt: skip
def split(
    p_q, p_q_pos, p_k, p_k_scale, p_v, p_v_scale, p_k_pos, p_bias,
    p_logits, p_max, p_sum, p_part, p_norm_max, p_norm_sum,
    scale, softcap, window, num_keys, keys_per_split, logits_width, num_splits,
    seed, layer, first_head, first, last, ramp,
    s_q_row, s_q_head, s_q_pos, s_k_row, s_k_head, s_k_key, s_v_row, s_v_head, s_v_key, s_pos_row, s_pos_head,
    NUM_KV_HEADS: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    PAD_D: tl.constexpr, PAD_D_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    BITS: tl.constexpr, BITS_V: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr,
    RUN: tl.constexpr, RUN_V: tl.constexpr, HAS_CAP: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """Grid (n * H_KV, splits): logits fp32 [n, H_Q, logits_width], where wanted, and attention of a part of the keys.

    Partials: maximum, sum [n * H_KV, splits, G] and unnormalised values [n * H_KV, splits, G, D_V]. Positions and bias
    share their strides.
    """
    head = tl.program_id(0)
    part = tl.program_id(1)
    row = (head // NUM_KV_HEADS).to(tl.int64)
    kv_head = (head % NUM_KV_HEADS).to(tl.int64)
    o_g = tl.arange(0, ROWS)
    m_g = o_g < G
    if p_bias is not None:
        p_bias += row * s_pos_row + kv_head * s_pos_head
    b_q_pos = tl.load(p_q_pos + row * s_q_pos) + tl.zeros([ROWS], tl.int32)
    query_heads = kv_head * G + o_g
    b_q = queries(p_q + row * s_q_row, query_heads, m_g, s_q_head, D, PAD_D, BITS)
    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_out = tl.zeros([ROWS, PAD_D_V], tl.float32)
    b_norm_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_norm_sum = tl.zeros([ROWS], tl.float32)
    if p_logits is not None:
        p_logits += head.to(tl.int64) * G * logits_width + o_g * logits_width
    begin = part * keys_per_split
    b_max, b_sum, b_out, b_norm_max, b_norm_sum = walk(
        b_q, b_q_pos, query_heads, b_max, b_sum, b_out, b_norm_max, b_norm_sum,
        p_k, p_k_scale, p_v, p_v_scale, p_k_pos + row * s_pos_row + kv_head * s_pos_head, p_bias,
        row * s_k_row + kv_head * s_k_head, row * s_v_row + kv_head * s_v_head, s_k_key, s_v_key,
        begin, tl.minimum(begin + keys_per_split, num_keys), p_logits, m_g,
        scale, softcap, window, seed, layer, first_head, first, last, ramp,
        D, D_V, PAD_D, PAD_D_V, BITS, BITS_V, GROUP, GROUP_V, RUN, RUN_V, KEYS, HAS_CAP, STATISTIC,
    )  # fmt: skip
    o_v = channels(D_V, PAD_D_V, BITS_V)
    o_part = (head.to(tl.int64) * num_splits + part) * G + o_g
    tl.store(p_max + o_part, b_max, mask=m_g)
    tl.store(p_sum + o_part, b_sum, mask=m_g)
    tl.store(p_part + o_part[:, None] * D_V + o_v[None, :], b_out, mask=m_g[:, None] & (o_v < D_V)[None, :])
    if STATISTIC == "below" or STATISTIC == "gumbel":
        tl.store(p_norm_max + o_part, b_norm_max, mask=m_g)
        tl.store(p_norm_sum + o_part, b_norm_sum, mask=m_g)


@triton.jit(do_not_specialize=["num_keys", "logits_width", "num_splits", "seed", "layer", "first_head"])
def finish(
    p_logits, p_max, p_sum, p_part, p_norm_max, p_norm_sum, p_sink, p_out,
    p_q_pos, p_k_pos, p_statistic, p_weight, p_retention,
    num_keys, keys_per_part, logits_width, num_splits,
    seed, layer, first_head, first, last, ramp,
    s_q_pos, s_pos_row, s_pos_head, s_statistic_row, s_statistic_head, s_weight, s_retention,
    NUM_KV_HEADS: tl.constexpr, G: tl.constexpr, D_V: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, TOGETHER: tl.constexpr,
    HAS_SINK: tl.constexpr, HAS_RETENTION: tl.constexpr,
    STATISTIC: tl.constexpr, HEADS: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Grid (n * H_KV, parts): CHANNELS of out [n, H_Q, 1, D_V], and the statistic of a part of the keys.

    Splits are joined TOGETHER at a time. The statistic is added to what stays of `p_statistic`, or written over it.
    """
    head = tl.program_id(0)
    part = tl.program_id(1)
    row = (head // NUM_KV_HEADS).to(tl.int64)
    kv_head = (head % NUM_KV_HEADS).to(tl.int64)
    o_g = tl.arange(0, ROWS)
    m_g = o_g < G
    query_heads = kv_head * G + o_g
    o_split = tl.arange(0, SPLITS)
    o_part = (head.to(tl.int64) * num_splits + o_split[:, None]) * G + o_g[None, :]
    m_part = (o_split < num_splits)[:, None] & m_g[None, :]
    b_maxes = tl.load(p_max + o_part, mask=m_part, other=float("-inf"))
    b_max = tl.max(b_maxes, 0)
    if HAS_SINK:
        b_sink = tl.load(p_sink + query_heads, mask=m_g, other=float("-inf")).to(tl.float32)
        b_max = tl.maximum(b_max, b_sink)
    b_sum = tl.sum(tl.exp(b_maxes - or_zero(b_max)[None, :]) * tl.load(p_sum + o_part, mask=m_part, other=0.0), 0)
    if HAS_SINK:
        b_sum += tl.exp(b_sink - or_zero(b_max))
    b_norm = log_of(b_max, b_sum)
    if part * CHANNELS < D_V:
        o_v = part * CHANNELS + tl.arange(0, CHANNELS)
        m_v = o_v < D_V
        b_out = tl.zeros([ROWS, CHANNELS], tl.float32)
        for start in range(0, num_splits, TOGETHER):
            o_some = start + tl.arange(0, TOGETHER)
            m_some = (o_some < num_splits)[:, None] & m_g[None, :]
            o_one = (head.to(tl.int64) * num_splits + o_some[:, None]) * G + o_g[None, :]
            b_keep = tl.exp(tl.load(p_max + o_one, mask=m_some, other=float("-inf")) - or_zero(b_max)[None, :])
            p_some = p_part + o_one[:, :, None] * D_V + o_v[None, None, :]
            b_some = tl.load(p_some, mask=m_some[:, :, None] & m_v[None, None, :], other=0.0)
            b_out += tl.sum(b_keep[:, :, None] * b_some, 0)
        b_out = b_out / tl.where(b_sum > 0.0, b_sum, 1.0)[:, None]
        p_one = p_out + (row * NUM_KV_HEADS * G + query_heads)[:, None] * D_V + o_v[None, :]
        tl.store(p_one, b_out.to(p_out.dtype.element_ty), mask=m_g[:, None] & m_v[None, :])
    if STATISTIC != "":
        b_q_pos = tl.load(p_q_pos + row * s_q_pos) + tl.zeros([ROWS], tl.int32)
        if STATISTIC == "below":
            b_count = tl.sum(tl.load(p_norm_sum + o_part, mask=m_part, other=0.0), 0)
            b_norm -= tl.log(tl.maximum(b_count, 1.0))
        if STATISTIC == "gumbel":
            b_maxes = tl.load(p_norm_max + o_part, mask=m_part, other=float("-inf"))
            b_max = tl.max(b_maxes, 0)
            b_norm_sum = tl.load(p_norm_sum + o_part, mask=m_part, other=0.0)
            b_norm = log_of(b_max, tl.sum(tl.exp(b_maxes - or_zero(b_max)[None, :]) * b_norm_sum, 0))
        weight = tl.load(p_weight + row * s_weight)
        retention = 1.0
        if HAS_RETENTION:
            retention = tl.load(p_retention + row * s_retention)
        p_logits += head.to(tl.int64) * G * logits_width
        p_k_pos += row * s_pos_row + kv_head * s_pos_head
        p_statistic += row * s_statistic_row + kv_head * s_statistic_head
        begin = part * keys_per_part
        for start in range(begin, tl.minimum(begin + keys_per_part, num_keys), KEYS):
            o_n = start + tl.arange(0, KEYS)
            m_n = o_n < num_keys
            m_x = m_g[:, None] & m_n[None, :]
            b_x = tl.load(p_logits + o_g[:, None] * logits_width + o_n[None, :], mask=m_x, other=float("-inf"))
            if STATISTIC == "gumbel":
                b_pos = tl.load(p_k_pos + o_n, mask=m_n, other=-1)
                b_x = noised(b_x, seed, layer, first_head, query_heads, b_q_pos, b_pos, first, last, ramp)
            b_share = share_of(b_x, b_norm[:, None], STATISTIC)
            if HEADS == "max":
                b_known = tl.max(b_share, 0) * weight
            else:
                b_known = tl.sum(b_share, 0) * weight / G
            if ACCUMULATE:
                b_known += tl.load(p_statistic + o_n, mask=m_n, other=0.0) * retention
            tl.store(p_statistic + o_n, b_known, mask=m_n)
