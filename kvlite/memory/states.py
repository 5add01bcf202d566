"""Bytes of the state a layer keeps whatever the context: short convolutions, gated delta rule, Mamba-2.

They follow the tensors of transformers' linear-attention cache layers: `conv_states` and `recurrent_states`, one row.
"""

from __future__ import annotations

from collections.abc import Callable

from kvlite.errors import BrokenModel
from kvlite.memory.fields import Fields

State = Callable[[Fields, int], int]
"""(config, bytes per element of the model's dtype) -> constant bytes per row of one layer."""

FP32 = 4


def short_convolution(config: Fields, element_bytes: int) -> int:
    """LFM2: the last `conv_L_cache` inputs. [hidden, L]"""
    return config.count("hidden_size") * config.count("conv_L_cache", default=3) * element_bytes


def gated_delta(config: Fields, element_bytes: int) -> int:
    """Qwen3-Next: convolved q, k, v inputs [2 K + V, kernel] and the fp32 state [H_V, K / H_K, V / H_V]."""
    k_heads = config.count("linear_num_key_heads", default=16)
    v_heads = config.count("linear_num_value_heads", default=32)
    k_dim = config.count("linear_key_head_dim", default=128)
    v_dim = config.count("linear_value_head_dim", default=128)
    kernel = config.count("linear_conv_kernel_dim", default=4)
    channels = 2 * k_heads * k_dim + v_heads * v_dim
    return channels * kernel * element_bytes + v_heads * k_dim * v_dim * FP32


def mamba2(inner_key: str | None = None) -> State:
    """Mamba-2: convolved inputs [inner + 2 groups * state, kernel] and the fp32 state [heads, head_dim, state].

    `inner_key` names the field that holds the inner width; without one it is `mamba_expand * hidden_size`.
    """

    def state(config: Fields, element_bytes: int) -> int:
        inner = config.count("mamba_expand", default=2) * config.count("hidden_size")
        if inner_key is not None:
            inner = config.optional_count(inner_key, default=1024) or inner
        heads = config.count("mamba_n_heads", default=128)
        if inner % heads:
            raise BrokenModel(f"config.json: mamba_n_heads is {heads}, which does not divide the inner width {inner}")
        groups = config.count("mamba_n_groups", default=1)
        d_state = config.count("mamba_d_state", default=256)
        kernel = config.count("mamba_d_conv", default=4)
        channels = inner + 2 * groups * d_state
        return channels * kernel * element_bytes + inner * d_state * FP32

    return state
