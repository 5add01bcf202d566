"""Writing slots in place: `insert` puts new tokens where an index says, `move` puts the waiting one over its victim."""

from __future__ import annotations

import triton
import triton.language as tl

from kvlite_kernels.triton_set.coding import put_coded
from kvlite_kernels.triton_set.vectors import head_of


@triton.jit
def _put(
    p_new, o_t, m_t, s_t, p_held, p_scale, first, s_slot, b_slot,
    D: tl.constexpr, PAD_D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Vectors `o_t` of one head into its slots `b_slot`, as they are or coded."""
    p_held = head_of(p_held, first, D, BITS)
    if BITS == 0:
        o_d = tl.arange(0, PAD_D)
        m_d = m_t[:, None] & (o_d < D)[None, :]
        b_x = tl.load(p_new + o_t[:, None] * s_t + o_d[None, :], mask=m_d)
        tl.store(p_held + b_slot[:, None] * s_slot + o_d[None, :], b_x.to(p_held.dtype.element_ty), mask=m_d)
    else:
        p_scale += first * (D // GROUP)
        put_coded(p_new, o_t, m_t, s_t, p_held, p_scale, b_slot, D, PAD_D, BITS, GROUP, RUN)


@triton.jit
def _copy(
    p_held, p_scale, first, s_slot, source, target,
    D: tl.constexpr, PAD_D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What slot `source` of one head holds to its slot `target`."""
    p_held = head_of(p_held, first, D, BITS)
    o_d = tl.arange(0, PAD_D)
    if BITS == 0:
        tl.store(p_held + target * s_slot + o_d, tl.load(p_held + source * s_slot + o_d, mask=o_d < D), mask=o_d < D)
    else:
        WIDTH: tl.constexpr = D if BITS == 8 else (D + 1) // 2
        m_d = o_d < WIDTH
        tl.store(p_held + target * WIDTH + o_d, tl.load(p_held + source * WIDTH + o_d, mask=m_d), mask=m_d)
        p_scale += first * (D // GROUP)
        m_u = o_d < D // GROUP
        b_scale = tl.load(p_scale + source * (D // GROUP) + o_d, mask=m_u)
        tl.store(p_scale + target * (D // GROUP) + o_d, b_scale, mask=m_u)


@triton.jit
def move_over(
    victim, waiting, p_k, p_k_scale, first_k, s_k_slot, p_v, p_v_scale, first_v, s_v_slot, p_pos, p_rot, p_statistic,
    D: tl.constexpr, D_V: tl.constexpr, PAD_D: tl.constexpr, PAD_D_V: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr, HAS_STATISTIC: tl.constexpr,
):  # fmt: skip
    """The token of one head that waits in slot `waiting` over the one in slot `victim`."""
    _copy(p_k, p_k_scale, first_k, s_k_slot, waiting, victim, D, PAD_D, BITS, GROUP)
    _copy(p_v, p_v_scale, first_v, s_v_slot, waiting, victim, D_V, PAD_D_V, BITS, GROUP_V)
    tl.store(p_pos + victim, tl.load(p_pos + waiting))
    tl.store(p_rot + victim, tl.load(p_rot + waiting))
    if HAS_STATISTIC:
        tl.store(p_statistic + victim, tl.load(p_statistic + waiting))


@triton.jit(do_not_specialize=["start", "num_slots", "num_tokens"])
def insert(
    p_k, p_k_scale, p_v, p_v_scale, p_pos, p_rot, p_statistic,
    p_new_k, p_new_v, p_new_pos, p_new_rot, p_new_statistic, p_index,
    start, num_slots, num_tokens,
    s_k_row, s_k_head, s_k_slot, s_v_row, s_v_head, s_v_slot, s_held_row, s_held_head,
    s_new_k_row, s_new_k_head, s_new_k_token, s_new_v_row, s_new_v_head, s_new_v_token, s_new_pos_row, s_new_rot_row,
    s_new_statistic_row, s_new_statistic_head, s_index_row, s_index_head, s_index_token,
    NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, PAD_D: tl.constexpr, PAD_D_V: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr, RUN: tl.constexpr, RUN_V: tl.constexpr,
    TOKENS: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_STATISTIC: tl.constexpr, STARTS_AT_ZERO: tl.constexpr,
):  # fmt: skip
    """Grid (n * H_KV, cdiv(T, TOKENS)): new tokens to the slots of `p_index`, or to those from `start` on.

    What the index sends to slot `num_slots` or beyond is not kept, and nothing is written. `pos`, `rot` and the
    statistic share their strides.
    """
    head = tl.program_id(0)
    row = (head // NUM_KV_HEADS).to(tl.int64)
    kv_head = (head % NUM_KV_HEADS).to(tl.int64)
    o_t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    m_t = o_t < num_tokens
    if HAS_INDEX:
        p_index += row * s_index_row + kv_head * s_index_head
        b_slot = tl.load(p_index + o_t * s_index_token, mask=m_t, other=0)
        m_t = m_t & (b_slot < num_slots)
    else:
        b_slot = (start + o_t).to(tl.int64)
    _put(
        p_new_k + row * s_new_k_row + kv_head * s_new_k_head, o_t, m_t, s_new_k_token,
        p_k, p_k_scale, row * s_k_row + kv_head * s_k_head, s_k_slot, b_slot, D, PAD_D, BITS, GROUP, RUN,
    )  # fmt: skip
    _put(
        p_new_v + row * s_new_v_row + kv_head * s_new_v_head, o_t, m_t, s_new_v_token,
        p_v, p_v_scale, row * s_v_row + kv_head * s_v_head, s_v_slot, b_slot, D_V, PAD_D_V, BITS, GROUP_V, RUN_V,
    )  # fmt: skip
    o_held = row * s_held_row + kv_head * s_held_head + b_slot
    tl.store(p_pos + o_held, tl.load(p_new_pos + row * s_new_pos_row + o_t, mask=m_t), mask=m_t)
    tl.store(p_rot + o_held, tl.load(p_new_rot + row * s_new_rot_row + o_t, mask=m_t), mask=m_t)
    if HAS_STATISTIC:
        if STARTS_AT_ZERO:
            b_statistic = tl.zeros([TOKENS], tl.float32)
        else:
            p_new_statistic += row * s_new_statistic_row + kv_head * s_new_statistic_head
            b_statistic = tl.load(p_new_statistic + o_t, mask=m_t)
        tl.store(p_statistic + o_held, b_statistic, mask=m_t)


@triton.jit(do_not_specialize=["waiting", "num_parts"])
def move(
    p_k, p_k_scale, p_v, p_v_scale, p_pos, p_rot, p_statistic, p_rank, p_rank_pos, p_rank_slot, waiting, num_parts,
    s_k_row, s_k_head, s_k_slot, s_v_row, s_v_head, s_v_slot, s_held_row, s_held_head,
    NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, PAD_D: tl.constexpr, PAD_D_V: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr, PARTS: tl.constexpr, HAS_STATISTIC: tl.constexpr,
):  # fmt: skip
    """Grid (n * H_KV,): the token in slot `waiting` over the lowest (priority, position, slot) that `finish` found.

    Padding waits at position -1 and is not kept.
    """
    head = tl.program_id(0)
    row = (head // NUM_KV_HEADS).to(tl.int64)
    kv_head = (head % NUM_KV_HEADS).to(tl.int64)
    o_part = tl.arange(0, PARTS)
    m_part = o_part < num_parts
    o_best = head * num_parts + o_part
    b_rank = tl.load(p_rank + o_best, mask=m_part, other=float("inf"))
    b_pos = tl.load(p_rank_pos + o_best, mask=m_part, other=2147483647)
    b_slot = tl.load(p_rank_slot + o_best, mask=m_part, other=2147483647)
    m_low = m_part & (b_rank == tl.min(b_rank, 0))
    m_low = m_low & (b_pos == tl.min(tl.where(m_low, b_pos, 2147483647), 0))
    victim = tl.min(tl.where(m_low, b_slot, 2147483647), 0)
    o_held = row * s_held_row + kv_head * s_held_head
    if tl.load(p_pos + o_held + waiting) >= 0:
        move_over(
            victim, waiting, p_k, p_k_scale, row * s_k_row + kv_head * s_k_head, s_k_slot,
            p_v, p_v_scale, row * s_v_row + kv_head * s_v_head, s_v_slot,
            p_pos + o_held, p_rot + o_held, p_statistic + o_held,
            D, D_V, PAD_D, PAD_D_V, BITS, GROUP, GROUP_V, HAS_STATISTIC,
        )  # fmt: skip
