"""Coding rotated vectors in 8 or 4 bits: the kernels' side of `lowbit.quantise`, which they equal bit for bit."""

from __future__ import annotations

import triton
import triton.language as tl


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
    GROUP: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """4-bit codes, 8 above their values, of the channels from START on: [N, PAD_D / 2 / RUN, RUN]; 0 past the last."""
    o_u = tl.arange(0, PAD_D // GROUP)
    o_run = START + tl.arange(0, PAD_D // 2 // RUN) * RUN
    m_own = (o_run // GROUP)[None, :, None] == o_u[None, None, :]
    b_own = tl.sum(tl.where(m_own, b_scale.to(tl.float32)[:, None, :], 0.0), 2)
    o_c = o_run[:, None] + tl.arange(0, RUN)[None, :]
    m_c = m_t[:, None, None] & (o_c < D)[None, :, :]
    b_x = tl.load(p_x + o_t[:, None, None] * D + o_c[None, :, :], mask=m_c, other=0.0).to(tl.float32)
    return tl.where(m_c, codes_of(b_x, b_own[:, :, None], 4) + 8, 0)


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
        b_low = half_codes(p_x, o_t, m_t, b_scale, 0, D, PAD_D, GROUP, RUN)
        b_high = half_codes(p_x, o_t, m_t, b_scale, HALF, D, PAD_D, GROUP, RUN)
        o_b = tl.arange(0, PAD_D // 2 // RUN)[:, None] * RUN + tl.arange(0, RUN)[None, :]
        m_b = m_t[:, None, None] & (o_b < HALF)[None, :, :]
        b_both = (b_low | (b_high << 4)).to(tl.uint8)
        tl.store(p_codes + o_t[:, None, None] * HALF + o_b[None, :, :], b_both, mask=m_b)
