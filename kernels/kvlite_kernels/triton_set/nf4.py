"""Products of few rows with 4-bit weights: each packed byte is read once, whatever the rows, and unpacked in place.

`multiply_one` is for one row, on the ordinary cores and exact in fp32; `multiply_many` is for up to 32, on the tensor
cores, whose weights it rounds to x's dtype once. Where the outputs alone do not fill the device, the channels are cut
into parts and `add_parts` adds what each of them found, in order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _channel(word, IS_UPPER: tl.constexpr, KIND: tl.constexpr):
    """The channel in the upper or the lower half of a word, in fp32."""
    if KIND == "bfloat16":
        b_x = ((word & -65536) if IS_UPPER else (word << 16)).to(tl.float32, bitcast=True)
    elif KIND == "float16":
        b_x = ((word >> 16) if IS_UPPER else word).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        b_x = ((word >> 32) if IS_UPPER else word).to(tl.int32).to(tl.float32, bitcast=True)
    return b_x


@triton.jit
def multiply_one(
    p_x, p_packed, p_absmax, p_code, p_bias, p_out,
    num_outputs, row_bytes, bytes_per_part,
    KIND: tl.constexpr, HALF_BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, BYTES: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Grid (outputs, parts): out [parts, N] of x [K], whose words hold two channels each, as the bytes of weights do.

    Sixteen bytes lie in one block: their sum is scaled once.
    """
    part = tl.program_id(1)
    o_n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m_n = o_n < num_outputs
    o_row = o_n.to(tl.int64) * row_bytes
    begin = part * bytes_per_part
    end = tl.minimum(begin + bytes_per_part, row_bytes)
    GROUPS: tl.constexpr = BYTES // 16
    b_code = tl.load(p_code + tl.arange(0, 16))
    b_out = tl.zeros([OUTPUTS, GROUPS], tl.float32)
    for start in range(begin, end, BYTES):
        o_b = start + tl.arange(0, BYTES)
        m_b = o_b < end
        b_w = tl.load(p_packed + o_row[:, None] + o_b[None, :], mask=m_n[:, None] & m_b[None, :], other=0).to(tl.int32)
        b_high = tl.gather(b_code, tl.reshape(b_w >> 4, [OUTPUTS * BYTES]), 0).reshape([OUTPUTS, BYTES])
        b_low = tl.gather(b_code, tl.reshape(b_w & 15, [OUTPUTS * BYTES]), 0).reshape([OUTPUTS, BYTES])
        b_x = tl.load(p_x + o_b, mask=m_b, other=0)
        b_product = b_high * _channel(b_x, False, KIND)[None, :] + b_low * _channel(b_x, True, KIND)[None, :]
        o_g = start + tl.arange(0, GROUPS) * 16
        m_g = m_n[:, None] & (o_g < end)[None, :]
        b_scale = tl.load(p_absmax + (o_row[:, None] + o_g[None, :]) // HALF_BLOCK, mask=m_g, other=0.0)
        b_out += tl.sum(tl.reshape(b_product, [OUTPUTS, GROUPS, 16]), 2) * b_scale
    b_sum = tl.sum(b_out, 1)
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(p_out + part.to(tl.int64) * num_outputs + o_n, b_sum.to(p_out.dtype.element_ty), mask=m_n)


@triton.jit
def multiply_many(
    p_x, p_packed, p_absmax, p_code, p_bias, p_out,
    rows, num_outputs, row_bytes, bytes_per_part,
    HALF_BLOCK: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BYTES: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Grid (outputs, parts): out [parts, M, N] of x [M, K], M at most ROWS."""
    part = tl.program_id(1)
    o_n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    o_m = tl.arange(0, ROWS)
    m_n = o_n < num_outputs
    m_m = o_m < rows
    o_row = o_n.to(tl.int64) * row_bytes
    o_x = o_m.to(tl.int64) * 2 * row_bytes
    begin = part * bytes_per_part
    end = tl.minimum(begin + bytes_per_part, row_bytes)
    GROUPS: tl.constexpr = BYTES // 16
    b_code = tl.load(p_code + tl.arange(0, 16))
    b_out = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(begin, end, BYTES):
        o_b = start + tl.arange(0, BYTES)
        m_w = m_n[:, None] & (o_b < end)[None, :]
        b_w = tl.load(p_packed + o_row[:, None] + o_b[None, :], mask=m_w, other=0).to(tl.int32)
        o_g = start + tl.arange(0, GROUPS) * 16
        m_g = m_n[:, None] & (o_g < end)[None, :]
        b_scale = tl.load(p_absmax + (o_row[:, None] + o_g[None, :]) // HALF_BLOCK, mask=m_g, other=0.0)[:, :, None]
        b_high = tl.gather(b_code, tl.reshape(b_w >> 4, [OUTPUTS * BYTES]), 0).reshape([OUTPUTS, GROUPS, 16])
        b_low = tl.gather(b_code, tl.reshape(b_w & 15, [OUTPUTS * BYTES]), 0).reshape([OUTPUTS, GROUPS, 16])
        b_wide = tl.join(b_high * b_scale, b_low * b_scale).reshape([OUTPUTS, 2 * BYTES])
        o_k = 2 * start + tl.arange(0, 2 * BYTES)
        m_x = m_m[None, :] & (o_k < 2 * end)[:, None]
        b_x = tl.load(p_x + o_x[None, :] + o_k[:, None], mask=m_x, other=0.0)
        b_out = tl.dot(b_wide.to(b_x.dtype), b_x, b_out, input_precision="ieee")
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[:, None]
    o_out = (part.to(tl.int64) * rows + o_m[None, :]) * num_outputs + o_n[:, None]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_n[:, None] & m_m[None, :])


@triton.jit(do_not_specialize=["num_parts"])
def add_parts(
    p_parts, p_bias, p_out, num_outputs, num_parts,
    OUTPUTS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Grid (M, outputs): the sum [M, N] of `p_parts` fp32 [parts, M, N], and the bias."""
    row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    m_n = o_n < num_outputs
    p_parts += row * num_outputs + o_n
    b_sum = tl.zeros([OUTPUTS], tl.float32)
    for _ in range(num_parts):
        b_sum += tl.load(p_parts, mask=m_n, other=0.0)
        p_parts += tl.num_programs(0).to(tl.int64) * num_outputs
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(p_out + row * num_outputs + o_n, b_sum.to(p_out.dtype.element_ty), mask=m_n)
