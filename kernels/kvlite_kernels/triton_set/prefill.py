"""Attention of a chunk over slots and chunk in one pass, and the sums over its queries that a statistic asks for.

`attend` writes what normalises each query, so that `column_sums` can give every key its statistic from a second look at
queries and keys alone: nothing of size T x N is ever stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvlite_kernels.triton_set.softmax import log_of, logits_of, noised, sees, share_of, walk
from kvlite_kernels.triton_set.vectors import channels, head_of, queries, vectors


@triton.jit(do_not_specialize=["window", "num_queries", "num_keys", "num_new", "seed", "layer", "first_head"])
def attend(
    p_q, p_q_pos, p_k, p_k_scale, p_v, p_v_scale, p_k_pos, p_bias,
    p_new_k, p_new_k_scale, p_new_v, p_new_v_scale, p_new_pos, p_sink, p_out, p_lse, p_norm,
    scale, softcap, window, num_queries, num_keys, num_new, seed, layer, first_head, first, last, ramp,
    s_q_row, s_q_head, s_q_token, s_q_pos,
    s_k_row, s_k_head, s_k_key, s_v_row, s_v_head, s_v_key, s_pos_row, s_pos_head,
    s_new_k_row, s_new_k_head, s_new_k_key, s_new_v_row, s_new_v_head, s_new_v_key, s_new_pos_row,
    NUM_HEADS: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, BITS_V: tl.constexpr,
    PAD_D: tl.constexpr, PAD_D_V: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr, RUN: tl.constexpr, RUN_V: tl.constexpr,
    HAS_CAP: tl.constexpr, HAS_SINK: tl.constexpr, HAS_NEW: tl.constexpr, ARE_LAST: tl.constexpr,
    STATISTIC: tl.constexpr,
):  # fmt: skip
    """Grid (cdiv(T, QUERIES), n * H_Q): out [n, H_Q, T, D_V], lse and norm fp32 [n, H_Q, T].

    Where queries ARE_LAST, they are the last T of the new tokens, whose positions rise: a tile of queries sees no key
    of theirs that comes after its last query. Positions of slots and their bias share strides.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    row = (head // NUM_HEADS).to(tl.int64)
    query_head = (head % NUM_HEADS).to(tl.int64)
    kv_head = query_head // G
    o_t = tile * QUERIES + tl.arange(0, QUERIES)
    m_t = o_t < num_queries
    b_q = queries(p_q + row * s_q_row + query_head * s_q_head, o_t, m_t, s_q_token, D, PAD_D, BITS)
    b_q_pos = tl.load(p_q_pos + row * s_q_pos + o_t, mask=m_t, other=-1)
    if p_bias is not None:
        p_bias += row * s_pos_row + kv_head * s_pos_head
    b_max = tl.full([QUERIES], float("-inf"), tl.float32)
    b_sum = tl.zeros([QUERIES], tl.float32)
    b_out = tl.zeros([QUERIES, PAD_D_V], tl.float32)
    b_norm_max = tl.full([QUERIES], float("-inf"), tl.float32)
    b_norm_sum = tl.zeros([QUERIES], tl.float32)
    b_max, b_sum, b_out, b_norm_max, b_norm_sum = walk(
        b_q, b_q_pos, query_head, b_max, b_sum, b_out, b_norm_max, b_norm_sum,
        p_k, p_k_scale, p_v, p_v_scale, p_k_pos + row * s_pos_row + kv_head * s_pos_head, p_bias,
        row * s_k_row + kv_head * s_k_head, row * s_v_row + kv_head * s_v_head, s_k_key, s_v_key, 0, num_keys,
        None, None, scale, softcap, window, seed, layer, first_head, first, last, ramp,
        D, D_V, PAD_D, PAD_D_V, BITS, BITS_V, GROUP, GROUP_V, RUN, RUN_V, KEYS, HAS_CAP, STATISTIC,
    )  # fmt: skip
    if HAS_NEW:
        end = num_new
        if ARE_LAST:
            end = tl.minimum(num_new, num_new - num_queries + (tile + 1) * QUERIES)
        b_max, b_sum, b_out, b_norm_max, b_norm_sum = walk(
            b_q, b_q_pos, query_head, b_max, b_sum, b_out, b_norm_max, b_norm_sum,
            p_new_k, p_new_k_scale, p_new_v, p_new_v_scale, p_new_pos + row * s_new_pos_row, None,
            row * s_new_k_row + kv_head * s_new_k_head, row * s_new_v_row + kv_head * s_new_v_head,
            s_new_k_key, s_new_v_key, 0, end, None, None,
            scale, softcap, window, seed, layer, first_head, first, last, ramp,
            D, D_V, PAD_D, PAD_D_V, BITS, BITS_V, GROUP, GROUP_V, RUN, RUN_V, KEYS, HAS_CAP, STATISTIC,
        )  # fmt: skip
    if HAS_SINK:
        sink = tl.load(p_sink + query_head).to(tl.float32)
        b_new_max = tl.maximum(b_max, sink)
        b_keep = tl.exp(b_max - b_new_max)
        b_sum = b_sum * b_keep + tl.exp(sink - b_new_max)
        b_out = b_out * b_keep[:, None]
        b_max = b_new_max
    b_lse = log_of(b_max, b_sum)
    b_out = b_out / tl.where(b_sum > 0.0, b_sum, 1.0)[:, None]
    o_q = head.to(tl.int64) * num_queries + o_t
    o_v = channels(D_V, PAD_D_V, BITS_V)
    m_out = m_t[:, None] & (o_v < D_V)[None, :]
    tl.store(p_out + o_q[:, None] * D_V + o_v[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)
    tl.store(p_lse + o_q, b_lse, mask=m_t)
    if STATISTIC == "below":
        tl.store(p_norm + o_q, b_lse - tl.log(tl.maximum(b_norm_sum, 1.0)), mask=m_t)
    if STATISTIC == "gumbel":
        tl.store(p_norm + o_q, log_of(b_norm_max, b_norm_sum), mask=m_t)


@triton.jit(do_not_specialize=["window", "num_queries", "num_keys", "begin", "seed", "layer", "first_head"])
def column_sums(
    p_q, p_q_pos, p_norm, p_weight, p_k, p_k_scale, p_k_pos, p_bias, p_sums,
    scale, softcap, window, num_queries, num_keys, begin, seed, layer, first_head, first, last, ramp,
    s_q_row, s_q_head, s_q_token, s_q_pos, s_weight, s_k_row, s_k_head, s_k_key, s_pos_row, s_pos_head,
    NUM_KV_HEADS: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
    HAS_CAP: tl.constexpr, IS_NEW: tl.constexpr, STATISTIC: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Grid (cdiv(N, KEYS), n * H_KV): the statistic [n, H_KV, N] of one segment, over the queries from `begin` on.

    Keys of the chunk itself are passed over by the queries before them.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    row = (head // NUM_KV_HEADS).to(tl.int64)
    kv_head = (head % NUM_KV_HEADS).to(tl.int64)
    o_n = tile * KEYS + tl.arange(0, KEYS)
    m_n = o_n < num_keys
    p_k, p_k_scale = head_of(p_k, p_k_scale, row * s_k_row + kv_head * s_k_head, D, BITS, GROUP)
    b_pos = tl.load(p_k_pos + row * s_pos_row + kv_head * s_pos_head + o_n, mask=m_n, other=-1)
    b_k = vectors(p_k, p_k_scale, o_n, m_n, b_pos >= 0, s_k_key, D, PAD_D, BITS, GROUP, RUN).to(p_q.dtype.element_ty)
    if p_bias is not None:
        b_bias = tl.load(p_bias + row * s_pos_row + kv_head * s_pos_head + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_total = tl.zeros([KEYS], tl.float32)
    if IS_NEW:
        begin = tl.maximum(begin, tile * KEYS - (num_keys - num_queries))
    for start in range(begin, num_queries, QUERIES):
        o_t = start + tl.arange(0, QUERIES)
        m_t = o_t < num_queries
        b_q_pos = tl.load(p_q_pos + row * s_q_pos + o_t, mask=m_t, other=-1)
        b_weight = tl.load(p_weight + row * s_weight + o_t, mask=m_t, other=0.0)
        m_seen = sees(b_q_pos[:, None], b_pos[None, :], window)
        if HEADS == "max":
            b_most = tl.zeros([QUERIES, KEYS], tl.float32)
        for g in range(G):
            query_head = kv_head * G + g
            p_one = p_q + row * s_q_row + query_head * s_q_head
            b_q = queries(p_one, o_t, m_t, s_q_token, D, PAD_D, BITS)
            o_q = (row * NUM_KV_HEADS * G + query_head) * num_queries + o_t
            b_norm = tl.load(p_norm + o_q, mask=m_t, other=float("-inf"))
            b_x = logits_of(b_q, b_k, scale, softcap, HAS_CAP)
            if p_bias is not None:
                b_x += b_bias[None, :]
            b_x = tl.where(m_seen, b_x, float("-inf"))
            if STATISTIC == "gumbel":
                b_x = noised(b_x, seed, layer, first_head, query_head, b_q_pos, b_pos, first, last, ramp)
            b_share = share_of(b_x, b_norm[:, None], STATISTIC)
            if HEADS == "max":
                b_most = tl.maximum(b_most, b_share)
            else:
                b_total += tl.sum(b_share * b_weight[:, None], 0) / G
        if HEADS == "max":
            b_total += tl.sum(b_most * b_weight[:, None], 0)
    tl.store(p_sums + head.to(tl.int64) * num_keys + o_n, b_total, mask=m_n)
