"""Ranking full slots where tokens share with their neighbours: `evict` puts the waiting tokens of all layers in place.

The order of a head's slots by position is kept between steps. A program looks whether it still is one, because whatever
else writes slots does not keep it, and makes it anew where it is not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvlite_kernels.triton_set.commit import move_over


@triton.jit
def protected(
    b_rank, b_pos, q_pos, p_pins, num_pins, recent, sinks, window,
    HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """What the live slots at `b_pos` rank once the query at `q_pos` has attended: +inf is kept, the unseen go first."""
    m_kept = b_pos > q_pos - recent
    if HAS_WINDOW:
        b_rank = tl.where(b_pos <= q_pos + 1 - window, -3.4028234663852886e38, b_rank)
    else:
        m_kept = m_kept | (b_pos < sinks)
        for i in range(num_pins):
            m_kept = m_kept | ((b_pos >= tl.load(p_pins + 2 * i)) & (b_pos < tl.load(p_pins + 2 * i + 1)))
    return tl.where(m_kept, float("inf"), b_rank)


@triton.jit
def _is_in_order(p_order, p_pos, num_slots, RANKS: tl.constexpr):
    """Whether each slot of the order holds a newer token than the one before, so that it is one of full slots."""
    is_in_order = 1
    for start in range(0, num_slots, RANKS):
        o_i = start + tl.arange(0, RANKS)
        m_i = o_i < num_slots
        m_before = m_i & (o_i > 0)
        b_slot = tl.load(p_order + o_i, mask=m_i, other=0)
        b_before = tl.load(p_order + o_i - 1, mask=m_before, other=0)
        b_pos = tl.load(p_pos + b_slot, mask=m_i, other=2147483647)
        b_rises = b_pos > tl.load(p_pos + b_before, mask=m_before, other=-1)
        is_in_order = tl.minimum(is_in_order, tl.min(b_rises.to(tl.int32), 0))
    return is_in_order


@triton.jit
def _first_free(p_pos, num_slots, RANKS: tl.constexpr):
    """The first free slot, `num_slots` where none is."""
    free = num_slots
    for start in range(0, num_slots, RANKS):
        o_n = start + tl.arange(0, RANKS)
        b_pos = tl.load(p_pos + o_n, mask=o_n < num_slots, other=0)
        free = tl.minimum(free, tl.min(tl.where(b_pos < 0, o_n, num_slots), 0))
    return free


@triton.jit
def _put_in_order(p_order, p_pos, num_slots, RANKS: tl.constexpr, OTHERS: tl.constexpr):
    """Make the order of full slots: a slot's place in it is how many hold older tokens."""
    for start in range(0, num_slots, RANKS):
        o_n = start + tl.arange(0, RANKS)
        m_n = o_n < num_slots
        b_pos = tl.load(p_pos + o_n, mask=m_n, other=0)
        b_place = tl.zeros([RANKS], tl.int32)
        for first in range(0, num_slots, OTHERS):
            o_j = first + tl.arange(0, OTHERS)
            b_other = tl.load(p_pos + o_j, mask=o_j < num_slots, other=2147483647)
            b_place += tl.sum((b_other[:, None] < b_pos[None, :]).to(tl.int32), 0)
        tl.store(p_order + b_place, o_n, mask=m_n)
    tl.debug_barrier()  # other threads read what these have written


@triton.jit
def _shared(
    p_order, p_pos, p_statistic, o_i, m_i, b_pos, q_pos, num_slots, horizon,
    REACH: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The mean of what the tokens within REACH positions of those at the places `o_i` are known by.

    They are at most as many places away and added from the first to the last, as `neighbours` does. The last place is
    that of the token that waits.
    """
    b_total = tl.zeros(o_i.shape, tl.float32)
    b_count = tl.zeros(o_i.shape, tl.float32)
    for places in range(-REACH, REACH + 1):
        o_near = o_i + places
        m_near = m_i & (o_near >= 0) & (o_near <= num_slots)
        b_slot = tl.load(p_order + o_near, mask=m_near, other=0)
        b_near = tl.load(p_pos + b_slot, mask=m_near, other=0)
        m_near = m_near & (tl.abs(b_near - b_pos) <= REACH)
        if RANK == "position":
            b_known = b_near.to(tl.float32)
        else:
            b_known = tl.load(p_statistic + b_slot, mask=m_near, other=0.0)
            if RANK == "age":
                b_age = tl.minimum(tl.maximum(q_pos + 1 - b_near, 1), horizon)
                b_known = tl.div_rn(b_known, b_age.to(tl.float32))
        b_total += tl.where(m_near, b_known, 0.0)
        b_count += m_near.to(tl.float32)
    return tl.div_rn(b_total, tl.maximum(b_count, 1.0))


@triton.jit
def _leave(p_order, place, num_slots, RANKS: tl.constexpr):
    """Take the slot at `place` out of the order and append it, as that of the newest token; gives the slot."""
    slot = tl.load(p_order + place)
    for start in range(place, num_slots - 1, RANKS):
        o_i = start + tl.arange(0, RANKS)
        m_i = o_i < num_slots - 1
        b_next = tl.load(p_order + o_i + 1, mask=m_i, other=0)
        tl.debug_barrier()  # before other threads write what these have read
        tl.store(p_order + o_i, b_next, mask=m_i)
    tl.store(p_order + num_slots - 1, slot)
    return slot


@triton.jit(do_not_specialize=["num_slots", "num_rows", "all_rows", "first_row", "recent", "sinks", "num_pins"])
def evict(
    p_k, p_k_scale, p_v, p_v_scale, p_pos, p_rot, p_statistic, p_order, p_q_pos, p_pins,
    num_slots, num_rows, all_rows, first_row, horizon, recent, sinks, window, num_pins,
    s_k_row, s_k_head, s_k_slot, s_v_row, s_v_head, s_v_slot, s_held_row, s_held_head, s_order_row, s_order_head,
    s_q_pos,
    NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, PAD_D: tl.constexpr, PAD_D_V: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr, HAS_STATISTIC: tl.constexpr,
    HAS_WINDOW: tl.constexpr, RANK: tl.constexpr, REACH: tl.constexpr, RANKS: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Grid (layers * n * H_KV,): the token that waits in slot `num_slots` over the one that goes first.

    A layer has `all_rows` rows, of which the n = `num_rows` from `first_row` on are fed. In the order of positions the
    first of equals is the oldest. Padding waits at position -1 and is not kept; a free slot is taken without ranking.
    """
    head = tl.program_id(0)
    row = head // NUM_KV_HEADS
    kv_head = (head % NUM_KV_HEADS).to(tl.int64)
    fed = row % num_rows
    held_row = (row // num_rows * all_rows + first_row + fed).to(tl.int64)
    o_held = held_row * s_held_row + kv_head * s_held_head
    p_pos += o_held
    p_rot += o_held
    p_statistic += o_held
    p_order += held_row * s_order_row + kv_head * s_order_head
    if tl.load(p_pos + num_slots) >= 0:
        victim = num_slots
        if _is_in_order(p_order, p_pos, num_slots, RANKS) == 0:
            victim = _first_free(p_pos, num_slots, RANKS)
            if victim == num_slots:
                _put_in_order(p_order, p_pos, num_slots, RANKS, OTHERS)
        if victim == num_slots:
            q_pos = tl.load(p_q_pos + fed * s_q_pos)
            lowest = float("inf")
            place = 0
            for start in range(0, num_slots, RANKS):
                o_i = start + tl.arange(0, RANKS)
                m_i = o_i < num_slots
                b_pos = tl.load(p_pos + tl.load(p_order + o_i, mask=m_i, other=0), mask=m_i, other=0)
                b_rank = _shared(p_order, p_pos, p_statistic, o_i, m_i, b_pos, q_pos, num_slots, horizon, REACH, RANK)
                b_rank = protected(
                    b_rank, b_pos, q_pos, p_pins + fed * num_pins * 2, num_pins, recent, sinks, window, HAS_WINDOW
                )
                b_rank = tl.where(m_i, b_rank, float("inf"))
                here = tl.min(b_rank, 0)
                here_place = tl.min(tl.where(b_rank == here, o_i, 2147483647), 0)
                place = tl.where(here < lowest, here_place, place)
                lowest = tl.where(here < lowest, here, lowest)
            victim = _leave(p_order, place, num_slots, RANKS)
        move_over(
            victim, num_slots, p_k, p_k_scale, held_row * s_k_row + kv_head * s_k_head, s_k_slot,
            p_v, p_v_scale, held_row * s_v_row + kv_head * s_v_head, s_v_slot, p_pos, p_rot, p_statistic,
            D, D_V, PAD_D, PAD_D_V, BITS, GROUP, GROUP_V, HAS_STATISTIC,
        )  # fmt: skip
