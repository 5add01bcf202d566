"""Products of few rows with weights in GGUF blocks: the bytes are those of the file, read once whatever the rows.

A run is 32 weights whose codes lie in the low and the high halves of 16 bytes (Q8_0 has 16 bytes for each half). The
halves are of neighbouring channels each, and have a scale and a low each. `multiply_blocks_one` is for one row, on the
ordinary cores and exact in fp32; `multiply_blocks_many` is for up to 32, on the tensor cores, whose weights it rounds
to x's dtype once. Layouts as in `kvlite_kernels.blocks`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _six_bits(p_bytes, o_block, o_group, m_run):
    """Scale and low [N, R] of a group of a K block, 6 bits each, beside the block's own."""
    o_byte = o_block + 4 + o_group % 4
    b_first = tl.load(p_bytes + o_byte, mask=m_run, other=0).to(tl.int32)
    b_second = tl.load(p_bytes + o_byte + 4, mask=m_run, other=0).to(tl.int32)
    b_third = tl.load(p_bytes + o_byte + 8, mask=m_run, other=0).to(tl.int32)
    b_scale = tl.where(o_group < 4, b_first & 63, (b_third & 15) | ((b_first >> 6) << 4))
    b_low = tl.where(o_group < 4, b_second & 63, (b_third >> 4) | ((b_second >> 6) << 4))
    return b_scale.to(tl.float32), b_low.to(tl.float32)


@triton.jit
def _runs_of_32(p_bytes, p_halves, o_block, m_run, KIND: tl.constexpr):
    """Codes [N, R, 16] of both halves, scale and low [N, R] of blocks that are one run; `low` for codes around 0."""
    o_i = tl.arange(0, 16)[None, None, :]
    m_i = m_run[:, :, None]
    HAS_LOW: tl.constexpr = KIND == "Q4_1" or KIND == "Q5_1"
    HAS_FIFTH: tl.constexpr = KIND == "Q5_0" or KIND == "Q5_1"
    HEAD: tl.constexpr = 4 if HAS_LOW else 2
    b_scale = tl.load(p_halves + o_block // 2, mask=m_run, other=0.0).to(tl.float32)
    b_low = tl.load(p_halves + o_block // 2 + 1, mask=m_run, other=0.0).to(tl.float32) if HAS_LOW else b_scale * 0.0
    p_codes = p_bytes + o_block[:, :, None] + (HEAD + 4 if HAS_FIFTH else HEAD) + o_i
    b_codes = tl.load(p_codes, mask=m_i, other=0).to(tl.int32)
    if KIND == "Q8_0":
        b_second = tl.load(p_codes + 16, mask=m_i, other=0).to(tl.int32)
        b_first, b_second = b_codes - ((b_codes >> 7) << 8), b_second - ((b_second >> 7) << 8)
    else:
        b_first, b_second = b_codes & 15, b_codes >> 4
    if HAS_FIFTH:
        p_fifth = p_bytes + o_block[:, :, None] + HEAD + o_i // 8
        b_first += ((tl.load(p_fifth, mask=m_i, other=0).to(tl.int32) >> (o_i % 8)) & 1) << 4
        b_second += ((tl.load(p_fifth + 2, mask=m_i, other=0).to(tl.int32) >> (o_i % 8)) & 1) << 4
    if KIND == "Q4_0":
        b_first, b_second = b_first - 8, b_second - 8
    if KIND == "Q5_0":
        b_first, b_second = b_first - 16, b_second - 16
    return b_first, b_second, b_scale, b_low


@triton.jit
def _runs_of_k(p_bytes, p_halves, o_block, o_run, m_run, KIND: tl.constexpr):
    """Codes [N, R, 16] of both halves, and for each a scale and a low [N, R], of run `o_run` of blocks of 256."""
    o_i = tl.arange(0, 16)[None, None, :]
    m_i = m_run[:, :, None]
    p_block = p_bytes + o_block[:, :, None]
    o_pair, o_half = o_run // 2, o_run % 2
    HEAD: tl.constexpr = 0 if KIND == "Q6_K" else (48 if KIND == "Q5_K" else 16)
    b_codes = tl.load(p_block + HEAD + 16 * o_run[:, :, None] + o_i, mask=m_i, other=0).to(tl.int32)
    b_first, b_second = b_codes & 15, b_codes >> 4
    if KIND == "Q6_K":
        o_quarter = (o_run % 4) // 2
        o_high = 128 + 32 * (o_run // 4) + 16 * o_half
        b_high = tl.load(p_block + o_high[:, :, None] + o_i, mask=m_i, other=0).to(tl.int32)
        b_high = b_high >> (2 * o_quarter)[:, :, None]
        b_first, b_second = (b_first | ((b_high & 3) << 4)) - 32, (b_second | (((b_high >> 4) & 3) << 4)) - 32
        p_scale = p_bytes + o_block + 192 + 8 * (o_run // 4) + 2 * o_quarter + o_half
        b_of_first = tl.load(p_scale, mask=m_run, other=0).to(tl.int32)
        b_of_second = tl.load(p_scale + 4, mask=m_run, other=0).to(tl.int32)
        b_of_all = tl.load(p_halves + (o_block + 208) // 2, mask=m_run, other=0.0).to(tl.float32)
        b_scale = (b_of_first - ((b_of_first >> 7) << 8)).to(tl.float32) * b_of_all
        b_scale_2 = (b_of_second - ((b_of_second >> 7) << 8)).to(tl.float32) * b_of_all
        b_low, b_low_2 = b_scale * 0.0, b_scale * 0.0
    else:
        if KIND == "Q5_K":
            o_high = 16 + 16 * o_half
            b_high = tl.load(p_block + o_high[:, :, None] + o_i, mask=m_i, other=0).to(tl.int32)
            b_high = b_high >> (2 * o_pair)[:, :, None]
            b_first, b_second = b_first | ((b_high & 1) << 4), b_second | (((b_high >> 1) & 1) << 4)
        b_of_scale = tl.load(p_halves + o_block // 2, mask=m_run, other=0.0).to(tl.float32)
        b_of_low = tl.load(p_halves + o_block // 2 + 1, mask=m_run, other=0.0).to(tl.float32)
        b_scale, b_low = _six_bits(p_bytes, o_block, 2 * o_pair, m_run)
        b_scale_2, b_low_2 = _six_bits(p_bytes, o_block, 2 * o_pair + 1, m_run)
        b_scale, b_low = b_scale * b_of_scale, -b_low * b_of_low
        b_scale_2, b_low_2 = b_scale_2 * b_of_scale, -b_low_2 * b_of_low
    return b_first, b_second, b_scale, b_low, b_scale_2, b_low_2


@triton.jit
def _weights(p_bytes, p_halves, o_row, o_run, m_run, KIND: tl.constexpr, BYTES: tl.constexpr):
    """Codes fp32 [N, R, 16] of both halves of runs [1, R], with a scale and a low [N, R] each."""
    if KIND == "Q4_K" or KIND == "Q5_K" or KIND == "Q6_K":
        o_block = o_row + o_run // 8 * BYTES
        o_inside = tl.broadcast_to(o_run % 8, m_run.shape)
        b_first, b_second, b_scale, b_low, b_scale_2, b_low_2 = _runs_of_k(
            p_bytes, p_halves, o_block, o_inside, m_run, KIND
        )
    else:
        b_first, b_second, b_scale, b_low = _runs_of_32(p_bytes, p_halves, o_row + o_run * BYTES, m_run, KIND)
        b_scale_2, b_low_2 = b_scale, b_low
    return b_first.to(tl.float32), b_second.to(tl.float32), b_scale, b_low, b_scale_2, b_low_2


@triton.jit
def _channels(o_run, KIND: tl.constexpr):
    """The first channel of each half of runs [R]."""
    if KIND == "Q4_K" or KIND == "Q5_K":
        o_first = o_run // 2 * 64 + o_run % 2 * 16
        o_second = o_first + 32
    elif KIND == "Q6_K":
        o_first = o_run // 4 * 128 + o_run % 4 * 16
        o_second = o_first + 64
    else:
        o_first = o_run * 32
        o_second = o_first + 16
    return o_first, o_second


@triton.jit
def multiply_blocks_one(
    p_x, p_bytes, p_halves, p_bias, p_out,
    num_outputs, row_bytes, row_runs, runs_per_part,
    KIND: tl.constexpr, BYTES: tl.constexpr, OUTPUTS: tl.constexpr, RUNS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Grid (outputs, parts): out [parts, N] of x [K]; blocks of KIND have so many BYTES."""
    part = tl.program_id(1)
    o_n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m_n = o_n < num_outputs
    o_row = (o_n.to(tl.int64) * row_bytes)[:, None]
    begin = part * runs_per_part
    end = tl.minimum(begin + runs_per_part, row_runs)
    o_i = tl.arange(0, 16)[None, :]
    b_out = tl.zeros([OUTPUTS, RUNS], tl.float32)
    for start in range(begin, end, RUNS):
        o_run = start + tl.arange(0, RUNS)
        m_r = o_run < end
        m_run = m_n[:, None] & m_r[None, :]
        b_first, b_second, b_scale, b_low, b_scale_2, b_low_2 = _weights(
            p_bytes, p_halves, o_row, o_run[None, :], m_run, KIND, BYTES
        )
        o_first, o_second = _channels(o_run, KIND)
        b_x = tl.load(p_x + o_first[:, None] + o_i, mask=m_r[:, None], other=0.0).to(tl.float32)
        b_x_2 = tl.load(p_x + o_second[:, None] + o_i, mask=m_r[:, None], other=0.0).to(tl.float32)
        b_out += tl.sum(b_first * b_x[None, :, :], 2) * b_scale + tl.sum(b_second * b_x_2[None, :, :], 2) * b_scale_2
        if KIND == "Q4_1" or KIND == "Q5_1" or KIND == "Q4_K" or KIND == "Q5_K":
            b_out += tl.sum(b_x, 1)[None, :] * b_low + tl.sum(b_x_2, 1)[None, :] * b_low_2
    b_sum = tl.sum(b_out, 1)
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(p_out + part.to(tl.int64) * num_outputs + o_n, b_sum.to(p_out.dtype.element_ty), mask=m_n)


@triton.jit
def multiply_blocks_many(
    p_x, p_bytes, p_halves, p_bias, p_out,
    rows, num_outputs, row_bytes, row_runs, runs_per_part,
    KIND: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, RUNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Grid (outputs, parts): out [parts, M, N] of x [M, K], M at most ROWS; blocks of KIND have so many BYTES."""
    part = tl.program_id(1)
    o_n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    o_m = tl.arange(0, ROWS)
    m_n = o_n < num_outputs
    m_m = (o_m < rows)[None, :]
    o_row = (o_n.to(tl.int64) * row_bytes)[:, None]
    o_x = (o_m.to(tl.int64) * row_runs * 32)[None, :]
    begin = part * runs_per_part
    end = tl.minimum(begin + runs_per_part, row_runs)
    WIDTH: tl.constexpr = 16 * RUNS
    o_i = tl.arange(0, WIDTH)
    b_out = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(begin, end, RUNS):
        o_run = start + tl.arange(0, RUNS)
        m_run = m_n[:, None] & (o_run < end)[None, :]
        b_first, b_second, b_scale, b_low, b_scale_2, b_low_2 = _weights(
            p_bytes, p_halves, o_row, o_run[None, :], m_run, KIND, BYTES
        )
        b_first = tl.reshape(b_first * b_scale[:, :, None] + b_low[:, :, None], [OUTPUTS, WIDTH])
        b_second = tl.reshape(b_second * b_scale_2[:, :, None] + b_low_2[:, :, None], [OUTPUTS, WIDTH])
        o_first, o_second = _channels(start + o_i // 16, KIND)
        m_x = (start + o_i // 16 < end)[:, None] & m_m
        b_x = tl.load(p_x + o_x + (o_first + o_i % 16)[:, None], mask=m_x, other=0.0)
        b_x_2 = tl.load(p_x + o_x + (o_second + o_i % 16)[:, None], mask=m_x, other=0.0)
        b_out = tl.dot(b_first.to(b_x.dtype), b_x, b_out, input_precision="ieee")
        b_out = tl.dot(b_second.to(b_x.dtype), b_x_2, b_out, input_precision="ieee")
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[:, None]
    o_out = (part.to(tl.int64) * rows + o_m[None, :]) * num_outputs + o_n[:, None]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_n[:, None] & m_m)
