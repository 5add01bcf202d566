"""Gumbel noise as a hash: the kernel's side of `statistic.gumbel`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mixed(b_word):
    """murmur3's 32-bit finaliser."""
    b_word = (b_word ^ (b_word >> 16)) * 0x85EBCA6B
    b_word = (b_word ^ (b_word >> 13)) * 0xC2B2AE35
    return b_word ^ (b_word >> 16)


@triton.jit
def noised(b_x, seed, layer, b_heads, b_q_pos, b_k_pos, first, last, ramp):
    """(x + noise) / temperature of logits [M, N], of heads and queries at [M] and keys at [N] positions."""
    b_word = mixed(seed.to(tl.uint32) + 0x9E3779B9)
    b_word = mixed(mixed(b_word ^ layer.to(tl.uint32)) ^ b_heads.to(tl.uint32))
    b_word = mixed(b_word ^ b_q_pos.to(tl.uint32))
    b_word = mixed(b_word[:, None] ^ b_k_pos.to(tl.uint32)[None, :])
    b_uniform = ((b_word >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    b_noise = -tl.log(-tl.log(b_uniform))
    progress = tl.minimum(tl.maximum(b_q_pos.to(tl.float32) / ramp, 0.0), 1.0)
    temperature = first + (last - first) * progress
    return (b_x + b_noise) / temperature[:, None]
