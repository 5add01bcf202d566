"""Eviction of waiting tokens: `evict` finds each head's victim by score, under the protections, and moves over it."""

from __future__ import annotations

import triton
import triton.language as tl

from kvlite_kernels.triton_set.vectors import head_of

LAST = tl.constexpr(2147483647)


@triton.jit
def _copy(
    p_held, p_scale, first, s_slot, source, target,
    D: tl.constexpr, PAD_D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Copy the vector in slot `source` of one head to its slot `target`."""
    p_held, p_scale = head_of(p_held, p_scale, first, D, BITS, GROUP)
    HALF: tl.constexpr = (D + 1) // 2
    WIDTH: tl.constexpr = D if BITS == 0 or BITS == 8 else HALF + ((D + 3) // 4 if BITS == 6 else 0)
    o_d = tl.arange(0, PAD_D)
    m_d = o_d < WIDTH
    s_held = s_slot if BITS == 0 else WIDTH
    tl.store(p_held + target * s_held + o_d, tl.load(p_held + source * s_held + o_d, mask=m_d), mask=m_d)
    if BITS != 0:
        m_u = o_d < D // GROUP
        b_scale = tl.load(p_scale + source * (D // GROUP) + o_d, mask=m_u)
        tl.store(p_scale + target * (D // GROUP) + o_d, b_scale, mask=m_u)


@triton.jit(do_not_specialize=["num_slots", "num_rows", "recent", "sinks", "window", "num_pins", "most_pinned"])
def evict(
    p_k, p_k_scale, p_v, p_v_scale, p_pos, p_rot, p_statistic, p_bias, p_score, p_next_pos, p_pins,
    num_slots, num_rows, recent, sinks, window, num_pins, most_pinned,
    s_k_layer, s_k_row, s_k_head, s_k_slot, s_v_layer, s_v_row, s_v_head, s_v_slot,
    s_held_layer, s_held_row, s_held_head, s_score, s_next_pos,
    NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, PAD_D: tl.constexpr, PAD_D_V: tl.constexpr,
    BITS: tl.constexpr, BITS_V: tl.constexpr, GROUP: tl.constexpr, GROUP_V: tl.constexpr,
    HAS_STATISTIC: tl.constexpr, HAS_WINDOW: tl.constexpr, LIMITS_PINS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Grid (layers * n * H_KV,): the token in slot `num_slots` over the one of lowest (priority, position, slot).

    The order is that of `eviction.choose`. Padding waits at position -1 and is not kept. Scores lie head by head,
    `s_score` apart; `pos`, `rot`, the statistic and the bias, which is 0 where a token waits, share their strides.
    """
    head = tl.program_id(0).to(tl.int64)
    kv_head = head % NUM_KV_HEADS
    row = head // NUM_KV_HEADS % num_rows
    layer = head // NUM_KV_HEADS // num_rows
    o_held = layer * s_held_layer + row * s_held_row + kv_head * s_held_head
    p_pos += o_held
    if tl.load(p_pos + num_slots) >= 0:
        next_pos = tl.load(p_next_pos + row * s_next_pos)
        p_pins += row * num_pins * 2
        if LIMITS_PINS:  # of more than that the lowest goes first, as if none of them were pinned
            pinned = 0
            for start in range(0, num_slots, SLOTS):
                o_n = start + tl.arange(0, SLOTS)
                b_pos = tl.load(p_pos + o_n, mask=o_n < num_slots, other=LAST)
                m_pinned = o_n < 0
                for i in range(num_pins):
                    m_pinned = m_pinned | ((b_pos >= tl.load(p_pins + 2 * i)) & (b_pos < tl.load(p_pins + 2 * i + 1)))
                m_pinned = m_pinned & (b_pos >= sinks) & (b_pos < next_pos - recent)
                pinned += tl.sum(m_pinned.to(tl.int32), 0)
            num_pins = tl.where(pinned > most_pinned, 0, num_pins)
        lowest = float("inf")
        lowest_pos = LAST
        victim = LAST
        for start in range(0, num_slots, SLOTS):
            o_n = start + tl.arange(0, SLOTS)
            m_n = o_n < num_slots
            b_pos = tl.load(p_pos + o_n, mask=m_n, other=LAST)
            b_rank = tl.load(p_score + head * s_score + o_n, mask=m_n, other=float("inf"))
            b_rank = tl.where(b_rank == b_rank, b_rank, -3.4028234663852886e38)  # what is no number goes first
            m_kept = b_pos >= next_pos - recent
            if HAS_WINDOW:
                b_rank = tl.where(b_pos <= next_pos - window, -3.4028234663852886e38, b_rank)
            else:
                m_kept = m_kept | (b_pos < sinks)
                for i in range(num_pins):
                    m_kept = m_kept | ((b_pos >= tl.load(p_pins + 2 * i)) & (b_pos < tl.load(p_pins + 2 * i + 1)))
            b_rank = tl.where(m_kept, float("inf"), b_rank)
            b_rank = tl.where(b_pos < 0, float("-inf"), b_rank)
            here = tl.min(b_rank, 0)
            m_here = m_n & (b_rank == here)
            here_pos = tl.min(tl.where(m_here, b_pos, LAST), 0)
            here_slot = tl.min(tl.where(m_here & (b_pos == here_pos), o_n, LAST), 0)
            is_first = (here < lowest) | ((here == lowest) & (here_pos < lowest_pos))
            victim = tl.where(is_first, here_slot, victim)
            lowest_pos = tl.where(is_first, here_pos, lowest_pos)
            lowest = tl.minimum(here, lowest)
        if victim < num_slots:  # scores that are no numbers name nobody
            first_k = layer * s_k_layer + row * s_k_row + kv_head * s_k_head
            first_v = layer * s_v_layer + row * s_v_row + kv_head * s_v_head
            _copy(p_k, p_k_scale, first_k, s_k_slot, num_slots, victim, D, PAD_D, BITS, GROUP)
            _copy(p_v, p_v_scale, first_v, s_v_slot, num_slots, victim, D_V, PAD_D_V, BITS_V, GROUP_V)
            tl.store(p_pos + victim, tl.load(p_pos + num_slots))
            p_rot += o_held
            tl.store(p_rot + victim, tl.load(p_rot + num_slots))
            if HAS_STATISTIC:
                p_statistic += o_held
                tl.store(p_statistic + victim, tl.load(p_statistic + num_slots))
            if p_bias is not None:
                tl.store(p_bias + o_held + victim, 0.0)
