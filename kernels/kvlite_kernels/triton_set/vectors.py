"""Keys and values, whatever slots hold: numbers (BITS 0), or codes of 8, 6 or 4 bits with a scale per GROUP.

Codes lie slot by slot without a gap, so their strides are counted in slots and their addresses are known to be aligned.
Of 6 or 4 bits, a byte holds two channels half a vector apart; a tile keeps them side by side, and queries come in that
order.
A product of two vectors does not care, and what comes out of values is put back where it is stored. `code` makes codes:
those of `lowbit.quantise`, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def paired(b_low, b_high):
    """Two halves [N, M] of vectors as [N, 2 M], a channel of one beside that of the other."""
    b_both = tl.join(b_low, b_high)
    return tl.reshape(b_both, [b_low.shape[0], 2 * b_low.shape[1]])


@triton.jit
def channels(D: tl.constexpr, PAD_D: tl.constexpr, BITS: tl.constexpr):
    """The channel at each place of a tile's vectors; D or more where there is none."""
    o_c = tl.arange(0, PAD_D)
    if BITS == 4 or BITS == 6:
        HALF: tl.constexpr = (D + 1) // 2
        o_c = tl.where(o_c // 2 < HALF, o_c // 2 + (o_c % 2) * HALF, D)
    return o_c


@triton.jit
def queries(p_q, o_t, m_t, s_q, D: tl.constexpr, PAD_D: tl.constexpr, BITS: tl.constexpr):
    """Queries `o_t` [M, PAD_D], their channels in the order of the keys."""
    if BITS == 4 or BITS == 6:
        HALF: tl.constexpr = (D + 1) // 2
        o_c = tl.arange(0, PAD_D // 2)
        p_half = p_q + o_t[:, None] * s_q + o_c[None, :]
        b_low = tl.load(p_half, mask=m_t[:, None] & (o_c < HALF)[None, :], other=0.0)
        b_high = tl.load(p_half + HALF, mask=m_t[:, None] & (o_c < D - HALF)[None, :], other=0.0)
        b_q = paired(b_low, b_high)
    else:
        o_d = tl.arange(0, PAD_D)
        b_q = tl.load(p_q + o_t[:, None] * s_q + o_d[None, :], mask=m_t[:, None] & (o_d < D)[None, :], other=0.0)
    return b_q


@triton.jit
def head_of(p, p_scale, slot, D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr):
    """The start of a head and of its scales: `slot` counts elements of numbers, and slots of codes."""
    HALF: tl.constexpr = (D + 1) // 2
    WIDTH: tl.constexpr = 1 if BITS == 0 else (D if BITS == 8 else HALF + ((D + 3) // 4 if BITS == 6 else 0))
    return p + slot * WIDTH, p_scale + slot * (D // GROUP)


@triton.jit
def scaled(
    b_codes, p_scale, o_n, m_n, m_live,
    START: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Codes [N, M] of the channels from START on times their scales, in fp32: RUN neighbours share one.

    A free slot is zero, whatever its scale.
    """
    SCALES: tl.constexpr = D // GROUP
    RUNS: tl.constexpr = b_codes.shape[1] // RUN
    if RUN == GROUP and RUNS > 1 and RUNS <= 4 and SCALES % 2 == 0 and START % (2 * GROUP) == 0:
        # Two at a time: what is narrower than 4 bytes, the compiler does not load ahead. Of 8, Turing spills.
        o_w = START // GROUP // 2 + tl.arange(0, RUNS // 2)
        p_pair = p_scale.to(tl.pointer_type(tl.int32), bitcast=True) + o_n[:, None] * (SCALES // 2) + o_w[None, :]
        b_pair = tl.load(p_pair, mask=m_n[:, None] & (o_w < SCALES // 2)[None, :], other=0)
        b_low = b_pair.to(tl.int16).to(tl.float16, bitcast=True)
        b_scale = paired(b_low, (b_pair >> 16).to(tl.int16).to(tl.float16, bitcast=True))
    else:
        o_u = (START + tl.arange(0, RUNS) * RUN) // GROUP
        p_one = p_scale + o_n[:, None] * SCALES + o_u[None, :]
        b_scale = tl.load(p_one, mask=m_n[:, None] & (o_u < SCALES)[None, :], other=0.0)
    b_scale = tl.where(m_live[:, None], b_scale, 0.0).to(tl.float32)
    b_runs = tl.reshape(b_codes, [b_codes.shape[0], b_codes.shape[1] // RUN, RUN]).to(tl.float32)
    return tl.reshape(b_runs * b_scale[:, :, None], [b_codes.shape[0], b_codes.shape[1]])


@triton.jit
def vectors(
    p, p_scale, o_n, m_n, m_live, s_n,
    D: tl.constexpr, PAD_D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Keys or values `o_n` of one head [N, PAD_D]: as they are stored, or widened to fp32.

    RUN is how many channels of half a vector, where there are 6 or 4 bits, share a scale wherever they begin.
    """
    if BITS == 0:
        o_d = tl.arange(0, PAD_D)
        b_x = tl.load(p + o_n[:, None] * s_n + o_d[None, :], mask=m_n[:, None] & (o_d < D)[None, :], other=0.0)
    elif BITS == 8:
        o_d = tl.arange(0, PAD_D)
        b_codes = tl.load(p + o_n[:, None] * D + o_d[None, :], mask=m_n[:, None] & (o_d < D)[None, :], other=0)
        b_x = scaled(b_codes, p_scale, o_n, m_n, m_live, 0, D, GROUP, GROUP)
    else:
        HALF: tl.constexpr = (D + 1) // 2
        WIDTH: tl.constexpr = HALF + ((D + 3) // 4 if BITS == 6 else 0)
        o_d = tl.arange(0, PAD_D // 2)
        m_d = m_n[:, None] & (o_d < HALF)[None, :]
        b_codes = tl.load(p + o_n[:, None] * WIDTH + o_d[None, :], mask=m_d, other=0)
        b_low, b_high = b_codes & 15, b_codes >> 4
        if BITS == 6:
            b_top = tl.load(p + HALF + o_n[:, None] * WIDTH + (o_d // 2)[None, :], mask=m_d, other=0)
            b_top = b_top >> (o_d % 2 * 4).to(tl.uint8)[None, :]
            b_low, b_high = b_low | ((b_top & 3) << 4), b_high | ((b_top & 12) << 2)
        b_low = b_low.to(tl.int8) - (1 << (BITS - 1))
        b_high = b_high.to(tl.int8) - (1 << (BITS - 1))
        b_low = scaled(b_low, p_scale, o_n, m_n, m_live, 0, D, GROUP, RUN)
        b_high = scaled(b_high, p_scale, o_n, m_n, m_live, HALF, D, GROUP, RUN)
        b_x = paired(b_low, b_high)
    return b_x


@triton.jit
def scale_of(b_x, GROUP: tl.constexpr, BITS: tl.constexpr):
    """The fp16 scale [N, U] of groups [N, U, GROUP]: the first channel of largest magnitude takes the lowest code.

    It is no number where a channel is not finite.
    """
    m_finite = tl.abs(b_x) < float("inf")
    b_x = tl.where(m_finite, b_x, 0.0)
    b_peak = tl.max(tl.abs(b_x), 2)
    o_i = tl.arange(0, GROUP)[None, None, :]
    b_first = tl.min(tl.where(tl.abs(b_x) == b_peak[:, :, None], o_i, GROUP), 2)
    b_peak = tl.sum(tl.where(o_i == b_first[:, :, None], b_x, 0.0), 2)
    b_scale = tl.minimum(tl.maximum(b_peak * (-1.0 / (1 << (BITS - 1))), -65504.0), 65504.0)
    return tl.where(tl.min(m_finite.to(tl.int32), 2) == 1, b_scale, float("nan")).to(tl.float16)


@triton.jit
def codes_of(b_x, b_scale, BITS: tl.constexpr):
    """Codes int32 of vectors in fp32 by their scales: the nearest, ties to even, 0 where a scale is 0 or no number."""
    LOWEST: tl.constexpr = -(1 << (BITS - 1))
    b_scale = b_scale.to(tl.float32)
    m_scale = tl.abs(b_scale) > 0.0
    b_steps = tl.where(m_scale, tl.div_rn(b_x, tl.where(m_scale, b_scale, 1.0)), 0.0)
    b_steps = tl.minimum(tl.maximum(b_steps, 1.0 * LOWEST), -1.0 - LOWEST)
    return ((b_steps + 12582912.0) - 12582912.0).to(tl.int32)  # from 1.5 * 2^23 on, a float is a whole number


@triton.jit
def half_codes(
    p_x, o_t, m_t, b_scale, START: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Codes of 6 or 4 bits, from 0 on, of the channels from START on: [N, PAD_D / 2 / RUN, RUN]; 0 past the last."""
    o_u = tl.arange(0, PAD_D // GROUP)
    o_run = START + tl.arange(0, PAD_D // 2 // RUN) * RUN
    m_own = (o_run // GROUP)[None, :, None] == o_u[None, None, :]
    b_own = tl.sum(tl.where(m_own, b_scale.to(tl.float32)[:, None, :], 0.0), 2)
    o_c = o_run[:, None] + tl.arange(0, RUN)[None, :]
    m_c = m_t[:, None, None] & (o_c < D)[None, :, :]
    b_x = tl.load(p_x + o_t[:, None, None] * D + o_c[None, :, :], mask=m_c, other=0.0).to(tl.float32)
    return tl.where(m_c, codes_of(b_x, b_own[:, :, None], BITS) + (1 << (BITS - 1)), 0)


@triton.jit(do_not_specialize=["num_vectors"])
def code(
    p_x, p_codes, p_scale, num_vectors,
    D: tl.constexpr, PAD_D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """Grid (cdiv(N, TOKENS),): the codes and scales of vectors [N, D] without gaps."""
    o_t = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    m_t = o_t < num_vectors
    o_u = tl.arange(0, PAD_D // GROUP)
    o_c = o_u[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    m_c = m_t[:, None, None] & (o_c < D)[None, :, :]
    b_x = tl.load(p_x + o_t[:, None, None] * D + o_c[None, :, :], mask=m_c, other=0.0).to(tl.float32)
    b_scale = scale_of(b_x, GROUP, BITS)
    m_u = m_t[:, None] & (o_u < D // GROUP)[None, :]
    tl.store(p_scale + o_t[:, None] * (D // GROUP) + o_u[None, :], b_scale, mask=m_u)
    if BITS == 8:
        b_codes = codes_of(b_x, b_scale[:, :, None], BITS).to(tl.int8)
        tl.store(p_codes + o_t[:, None, None] * D + o_c[None, :, :], b_codes, mask=m_c)
    else:
        HALF: tl.constexpr = (D + 1) // 2
        WIDTH: tl.constexpr = HALF + ((D + 3) // 4 if BITS == 6 else 0)
        b_low = half_codes(p_x, o_t, m_t, b_scale, 0, D, PAD_D, BITS, GROUP, RUN)
        b_high = half_codes(p_x, o_t, m_t, b_scale, HALF, D, PAD_D, BITS, GROUP, RUN)
        o_b = tl.arange(0, PAD_D // 2 // RUN)[:, None] * RUN + tl.arange(0, RUN)[None, :]
        m_b = m_t[:, None, None] & (o_b < HALF)[None, :, :]
        b_both = ((b_low & 15) | ((b_high & 15) << 4)).to(tl.uint8)
        tl.store(p_codes + o_t[:, None, None] * WIDTH + o_b[None, :, :], b_both, mask=m_b)
        if BITS == 6:
            b_top = tl.where((o_b < HALF)[None, :, :], (b_low >> 4) | (b_high >> 4 << 2), 0)
            b_even, b_odd = tl.split(tl.reshape(b_top, [TOKENS, PAD_D // 4, 2]))
            o_q = tl.arange(0, PAD_D // 4)
            m_q = m_t[:, None] & (o_q < (D + 3) // 4)[None, :]
            b_four = (b_even | (b_odd << 4)).to(tl.uint8)
            tl.store(p_codes + HALF + o_t[:, None] * WIDTH + o_q[None, :], b_four, mask=m_q)
