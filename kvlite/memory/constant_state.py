"""The constant bytes that a layer keeps for each row: convolutions, state spaces and linear attention."""

from __future__ import annotations

from collections.abc import Callable

from kvlite.errors import BrokenModel
from kvlite.memory.fields import Fields

State = Callable[[Fields, int], int]
"""(config, bytes per element of the model's dtype) -> constant bytes per row of one layer.

They are those of the tensors in transformers' linear-attention cache layers, `conv_states` and `recurrent_states`.
"""

_FP32 = 4


def short_convolution(config: Fields, element_bytes: int, kernel: int = 3) -> int:
    """LFM2 and LFM3: the last `conv_L_cache` inputs. [hidden, L]"""
    return config.count("hidden_size") * config.count("conv_L_cache", default=kernel) * element_bytes


def gated_delta(config: Fields, element_bytes: int) -> int:
    """Qwen3-Next: convolved q, k, v inputs [2 K + V, kernel] and the fp32 state [H_V, K / H_K, V / H_V]."""
    k_heads = config.count("linear_num_key_heads", default=16)
    v_heads = config.count("linear_num_value_heads", default=32)
    k_dim = config.count("linear_key_head_dim", default=128)
    v_dim = config.count("linear_value_head_dim", default=128)
    kernel = config.count("linear_conv_kernel_dim", default=4)
    channels = 2 * k_heads * k_dim + v_heads * v_dim
    return channels * kernel * element_bytes + v_heads * k_dim * v_dim * _FP32


def gated_delta_of_olmo(config: Fields, element_bytes: int) -> int:
    """As `gated_delta`, with sizes that follow from the heads where config.json leaves them out."""
    heads, hidden = config.count("num_attention_heads"), config.count("hidden_size")
    names = ("linear_num_key_heads", "linear_num_value_heads")
    sizes: dict[str, object] = {name: config.optional_count(name) or heads for name in names}
    k_dim = config.optional_count("linear_key_head_dim") or int(0.75 * hidden / config.count(names[0], default=heads))
    sizes["linear_key_head_dim"] = k_dim
    sizes["linear_value_head_dim"] = config.optional_count("linear_value_head_dim") or 2 * k_dim
    return gated_delta(Fields({**config.values, **sizes}), element_bytes)


def mamba2(config: Fields, element_bytes: int, inner_key: str | None = None) -> int:
    """Mamba-2: convolved inputs [inner + 2 groups * state, kernel] and the fp32 state [heads, head_dim, state].

    `inner_key` names the field that holds the inner width; without one it is `mamba_expand * hidden_size`.
    """
    inner = config.count("mamba_expand", default=2) * config.count("hidden_size")
    if inner_key is not None:
        inner = config.optional_count(inner_key, default=1024) or inner
    heads = config.count("mamba_n_heads", default=128)
    if inner % heads:
        raise BrokenModel(f"config.json: mamba_n_heads is {heads}, which does not divide the inner width {inner}")
    d_state = config.count("mamba_d_state", default=256)
    channels = inner + 2 * config.count("mamba_n_groups", default=1) * d_state
    return channels * config.count("mamba_d_conv", default=4) * element_bytes + inner * d_state * _FP32


def mamba2_of_nemotron(config: Fields, element_bytes: int) -> int:
    """As `mamba2`, under other names."""
    names = {
        "mamba_n_heads": config.count("mamba_num_heads", default=128),
        "mamba_d_state": config.count("ssm_state_size", default=128),
        "mamba_n_groups": config.count("mamba_n_groups", "n_groups", default=8),
        "mamba_d_conv": config.count("mamba_d_conv", "conv_kernel", default=4),
    }
    inner = names["mamba_n_heads"] * config.count("mamba_head_dim", default=64)
    return mamba2(Fields({**config.values, **names, "inner": inner}), element_bytes, inner_key="inner")
