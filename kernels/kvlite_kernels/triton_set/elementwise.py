"""Kernels between the matrix products of a decoder layer: norms with the residual, rotation, the gate of the MLP.

Sizes that a model has once and for all are compiled in, so that loads are as wide as they can be.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normed(b_x, p_weight, eps, o_n, m_n, SIZE: tl.constexpr):
    """x [PAD] over the root of its mean square, times the weight."""
    b_weight = tl.load(p_weight + o_n, mask=m_n, other=0.0).to(tl.float32)
    return b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / SIZE + eps) * b_weight


@triton.jit
def join_residual(
    p_x, p_residual, p_before, p_after, p_sum, p_out, before_eps, after_eps, s_x, s_residual,
    SIZE: tl.constexpr, PAD: tl.constexpr,
    HAS_BEFORE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_AFTER: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): x, normed before, plus the residual is the sum; the sum, normed after, is out; each if asked for.

    The sum is normed as it is stored, rounded.
    """
    row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, PAD)
    m_n = o_n < SIZE
    b_x = tl.load(p_x + row * s_x + o_n, mask=m_n, other=0.0).to(tl.float32)
    if HAS_BEFORE:
        b_x = _normed(b_x, p_before, before_eps, o_n, m_n, SIZE)
    if HAS_RESIDUAL:
        b_x += tl.load(p_residual + row * s_residual + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_sum = b_x.to(p_sum.dtype.element_ty)
        tl.store(p_sum + row * SIZE + o_n, b_sum, mask=m_n)
        b_x = b_sum.to(tl.float32)
    if HAS_AFTER:
        b_x = _normed(b_x, p_after, after_eps, o_n, m_n, SIZE)
        tl.store(p_out + row * SIZE + o_n, b_x.to(p_out.dtype.element_ty), mask=m_n)


@triton.jit(do_not_specialize=["num_tokens"])
def rotate_heads(
    p_heads, p_cos, p_sin, p_out, p_q_weight, p_k_weight, q_eps, k_eps,
    num_tokens, s_row, s_token, s_head, s_cos_row, s_cos_token, s_cos_angle,
    QUERY_HEADS: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr, ANGLES: tl.constexpr,
    HEADS: tl.constexpr, PAD: tl.constexpr, PAD_REST: tl.constexpr,
    HAS_NORMS: tl.constexpr,
):  # fmt: skip
    """Grid (B * T, cdiv(COUNT, HEADS)): the first COUNT heads of a token, normed and rotated -> out [B * T, COUNT, D].

    PAD channels hold the ANGLES first ones of the pairs, PAD_REST the channels that stay, if there are any.
    """
    token = tl.program_id(0).to(tl.int64)
    row = token // num_tokens
    token_in_row = token % num_tokens
    o_h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    m_h = o_h < COUNT
    o_a = tl.arange(0, PAD)
    m_a = o_a < ANGLES
    o_cos = row * s_cos_row + token_in_row * s_cos_token + o_a * s_cos_angle
    b_cos = tl.load(p_cos + o_cos, mask=m_a, other=0.0).to(tl.float32)[None, :]
    b_sin = tl.load(p_sin + o_cos, mask=m_a, other=0.0).to(tl.float32)[None, :]
    p_heads += row * s_row + token_in_row * s_token + o_h[:, None] * s_head
    p_out += (token * COUNT + o_h[:, None]) * D
    m_half = m_h[:, None] & m_a[None, :]
    b_first = tl.load(p_heads + o_a[None, :], mask=m_half, other=0.0).to(tl.float32)
    b_second = tl.load(p_heads + ANGLES + o_a[None, :], mask=m_half, other=0.0).to(tl.float32)
    if PAD_REST > 0:
        o_rest = 2 * ANGLES + tl.arange(0, PAD_REST)
        m_rest = m_h[:, None] & (o_rest < D)[None, :]
        b_rest = tl.load(p_heads + o_rest[None, :], mask=m_rest, other=0.0).to(tl.float32)
    if HAS_NORMS:
        is_query = (o_h < QUERY_HEADS)[:, None]
        b_square = tl.sum(b_first * b_first, 1) + tl.sum(b_second * b_second, 1)
        if PAD_REST > 0:
            b_square += tl.sum(b_rest * b_rest, 1)
        b_scale = tl.rsqrt(b_square[:, None] / D + tl.where(is_query, q_eps, k_eps))
        b_first *= b_scale * _weight(p_q_weight, p_k_weight, is_query, o_a, m_a)
        b_second *= b_scale * _weight(p_q_weight, p_k_weight, is_query, ANGLES + o_a, m_a)
        if PAD_REST > 0:
            b_rest *= b_scale * _weight(p_q_weight, p_k_weight, is_query, o_rest, o_rest < D)
    b_rotated = b_first * b_cos - b_second * b_sin
    b_partner = b_second * b_cos + b_first * b_sin
    tl.store(p_out + o_a[None, :], b_rotated.to(p_out.dtype.element_ty), mask=m_half)
    tl.store(p_out + ANGLES + o_a[None, :], b_partner.to(p_out.dtype.element_ty), mask=m_half)
    if PAD_REST > 0:
        tl.store(p_out + o_rest[None, :], b_rest.to(p_out.dtype.element_ty), mask=m_rest)


@triton.jit
def _weight(p_q_weight, p_k_weight, is_query, o_n, m_n):
    """The norm's weight of each head's channels, [HEADS, channels]."""
    b_q = tl.load(p_q_weight + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    b_k = tl.load(p_k_weight + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    return tl.where(is_query, b_q, b_k)


@triton.jit
def _logistic(b_x):
    """1 / (1 + exp(-x)), without an exponential that overflows."""
    b_e = tl.exp(-tl.abs(b_x))
    return tl.where(b_x >= 0.0, 1.0, b_e) / (1.0 + b_e)


@triton.jit
def gate(p_gate_up, p_out, s_gate_up, SIZE: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    """Grid (rows, cdiv(SIZE, BLOCK)): the activation of the first SIZE channels of a row times the other SIZE."""
    row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < SIZE
    p_gate_up += row * s_gate_up
    b_gate = tl.load(p_gate_up + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_up = tl.load(p_gate_up + SIZE + o_n, mask=m_n, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        b_act = b_gate * _logistic(b_gate)
    else:  # gelu_tanh: (1 + tanh u) / 2 is the logistic function of 2 u
        b_act = b_gate * _logistic(1.5957691216057308 * b_gate * (1.0 + 0.044715 * b_gate * b_gate))
    tl.store(p_out + row * SIZE + o_n, (b_act * b_up).to(p_out.dtype.element_ty), mask=m_n)
