"""Products of few rows with weights in 8 bits: each code is read once, whatever the rows, and widened in place.

`multiply_one_int8` is for one row, on the ordinary cores; `multiply_many_int8` is for up to 32, on the tensor cores,
in whose dtypes every code is exact. The outputs are many enough to fill a device, so that nobody shares channels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply_one_int8(
    p_x, p_codes, p_scale, p_out, num_outputs, channels,
    OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Grid (outputs): out [N] of x [K]."""
    o_n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m_n = o_n < num_outputs
    o_row = o_n.to(tl.int64) * channels
    b_out = tl.zeros([OUTPUTS, CHANNELS], tl.float32)
    for start in range(0, channels, CHANNELS):
        o_k = start + tl.arange(0, CHANNELS)
        m_k = o_k < channels
        b_w = tl.load(p_codes + o_row[:, None] + o_k[None, :], mask=m_n[:, None] & m_k[None, :], other=0)
        b_x = tl.load(p_x + o_k, mask=m_k, other=0.0)
        b_out += b_w.to(tl.float32) * b_x.to(tl.float32)[None, :]
    b_sum = tl.sum(b_out, 1) * tl.load(p_scale + o_n, mask=m_n, other=0.0)
    tl.store(p_out + o_n, b_sum.to(p_out.dtype.element_ty), mask=m_n)


@triton.jit
def multiply_many_int8(
    p_x, p_codes, p_scale, p_out, rows, num_outputs, channels,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Grid (outputs): out [M, N] of x [M, K], M at most ROWS."""
    o_n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    o_m = tl.arange(0, ROWS)
    m_n = o_n < num_outputs
    m_m = o_m < rows
    o_row = o_n.to(tl.int64) * channels
    o_x = o_m.to(tl.int64) * channels
    b_out = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(0, channels, CHANNELS):
        o_k = start + tl.arange(0, CHANNELS)
        m_k = o_k < channels
        b_w = tl.load(p_codes + o_row[:, None] + o_k[None, :], mask=m_n[:, None] & m_k[None, :], other=0)
        b_x = tl.load(p_x + o_x[None, :] + o_k[:, None], mask=m_m[None, :] & m_k[:, None], other=0.0)
        b_out = tl.dot(b_w.to(b_x.dtype), b_x, b_out, input_precision="ieee")
    b_out *= tl.load(p_scale + o_n, mask=m_n, other=0.0)[:, None]
    o_out = o_m.to(tl.int64)[None, :] * num_outputs + o_n[:, None]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_n[:, None] & m_m[None, :])
