"""Defaults of transformers' config classes for fields that config.json may leave out, by `model_type`. A table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kvlite.memory.layouts import (
    CONV,
    FULL,
    HYBRID,
    LINEAR,
    SLIDING,
    Layout,
    alternate_below,
    every_layer,
    full_at,
    full_every,
    full_first_of,
    sliding_from,
    sliding_without_rope,
)
from kvlite.memory.states import State, gated_delta, mamba2, short_convolution

_ALL_FULL = every_layer(FULL)


@dataclass(frozen=True, slots=True)
class Family:
    """The attention of one `model_type`.

    `kv_heads`, `head_dim` and `window` stand in for an absent field: None is the query heads, hidden / query heads, no
    window. `layout` gives the layer types where config.json does not list them.
    """

    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    layout: Layout = _ALL_FULL
    max_positions: int | None = None
    positions: Literal["rotary", "learned"] = "rotary"
    state: State | None = None
    mla: tuple[int, int, int | None] | None = None  # qk_nope_head_dim, qk_rope_head_dim, v_head_dim (None: as head_dim)
    grouped: bool = True  # else as many KV heads as query heads
    reads_head_dim: bool = True  # else head_dim is always hidden / query heads
    reads_layer_types: bool = False
    window_flag: str | None = None  # the window counts only where this field is true
    rope_flag: bool = False  # rotary only where position_embedding_type is "rope"
    multi_query: bool = False  # one KV head unless `multi_query` is false
    global_dims: bool = False  # full layers read global_head_dim and num_global_key_value_heads


_HEADS = Family()
_GEMMA2 = Family(kv_heads=4, head_dim=256, window=4096, layout=full_every(2, SLIDING), reads_layer_types=True)
_EXAONE = Family(
    kv_heads=32, window=4096, layout=full_every(4, SLIDING, "sliding_window_pattern"), reads_layer_types=True
)
_GLM = Family(kv_heads=2, head_dim=128)
_LFM2 = Family(
    kv_heads=8, layout=full_at("full_attn_idxs", CONV, all_full=True), reads_layer_types=True, state=short_convolution
)
_GATED_DELTA = full_every(4, LINEAR, "full_attention_interval")
_WINDOWED = every_layer(SLIDING)

FAMILIES: Mapping[str, Family] = {
    # grouped queries, every layer full
    "apertus": _HEADS,
    "arcee": _HEADS,
    "cohere": _HEADS,
    "ernie4_5": _GLM,
    "ernie4_5_moe": Family(kv_heads=4),
    "flex_olmo": _HEADS,
    "gemma": Family(kv_heads=16, head_dim=256),
    "glm": _GLM,
    "glm4": _GLM,
    "glm4_moe": Family(kv_heads=8),
    "gpt_neox": Family(grouped=False, reads_head_dim=False),
    "granite": _HEADS,
    "granitemoe": _HEADS,
    "granitemoeshared": _HEADS,
    "hy_v3": Family(kv_heads=8, head_dim=128),
    "hyperclovax": _HEADS,
    "solar_open": Family(kv_heads=8, head_dim=128),
    "helium": Family(kv_heads=20, head_dim=128),
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "jais2": _HEADS,
    "llama": _HEADS,
    "minimax_m2": Family(kv_heads=8, head_dim=128),
    "nanochat": _HEADS,
    "nemotron": _HEADS,
    "olmo": _HEADS,
    "olmo2": _HEADS,
    "olmoe": _HEADS,
    "phi": _HEADS,
    "seed_oss": Family(kv_heads=8, head_dim=128),
    "stablelm": Family(kv_heads=32, reads_head_dim=False),
    # learned positions
    "gpt2": Family(positions="learned", max_positions=1024, grouped=False, reads_head_dim=False),
    "gpt_bigcode": Family(positions="learned", max_positions=1024, reads_head_dim=False, multi_query=True),
    "opt": Family(positions="learned", max_positions=2048, grouped=False, reads_head_dim=False),
    # one window for all layers, where config.json sets one
    "mistral": Family(kv_heads=8, window=4096, layout=_WINDOWED),
    "ministral3": Family(kv_heads=8, head_dim=128, layout=_WINDOWED),
    "mixtral": Family(kv_heads=8, layout=_WINDOWED),
    "phi3": Family(layout=_WINDOWED),
    "qwen3_moe": Family(kv_heads=4, window=4096, layout=_WINDOWED, window_flag="use_sliding_window"),
    "starcoder2": Family(kv_heads=2, layout=_WINDOWED),
    # full and sliding layers mixed
    "cohere2": Family(window=4096, layout=full_every(4, SLIDING, "sliding_window_pattern"), reads_layer_types=True),
    "cwm": Family(kv_heads=8, head_dim=128, window=8192, layout=full_first_of(4), reads_layer_types=True),
    "dots1": Family(kv_heads=32, window=4096, layout=sliding_from(62), reads_layer_types=True),
    "exaone4": _EXAONE,
    "exaone_moe": _EXAONE,
    "gemma2": _GEMMA2,
    "gemma3_text": Family(
        kv_heads=4,
        head_dim=256,
        window=4096,
        layout=full_every(6, SLIDING, "sliding_window_pattern"),
        reads_layer_types=True,
    ),
    "gemma3n_text": Family(kv_heads=2, head_dim=256, window=512, layout=full_every(5, SLIDING), reads_layer_types=True),
    "gemma4_text": Family(
        kv_heads=4, head_dim=256, window=512, layout=full_every(6, SLIDING), reads_layer_types=True, global_dims=True
    ),
    "gpt_oss": Family(kv_heads=8, head_dim=64, window=128, layout=full_every(2, SLIDING), reads_layer_types=True),
    "ministral": Family(kv_heads=8, window=4096, layout=_WINDOWED, reads_layer_types=True),
    "olmo3": Family(window=4096, layout=full_every(4, SLIDING), reads_layer_types=True),
    "qwen2": Family(
        kv_heads=32, window=4096, layout=sliding_from(28), reads_layer_types=True, window_flag="use_sliding_window"
    ),
    "qwen2_moe": Family(
        kv_heads=16, window=4096, layout=alternate_below(28), reads_layer_types=True, window_flag="use_sliding_window"
    ),
    "qwen3": Family(
        kv_heads=32,
        head_dim=128,
        window=4096,
        layout=sliding_from(28),
        reads_layer_types=True,
        window_flag="use_sliding_window",
    ),
    "smollm3": Family(
        kv_heads=4, layout=sliding_without_rope, reads_layer_types=True, window_flag="use_sliding_window"
    ),
    "vaultgemma": _GEMMA2,
    # latent attention, stored expanded per head
    "deepseek_v2": Family(mla=(128, 64, 128)),
    "deepseek_v3": Family(mla=(128, 64, 128)),
    "glm4_moe_lite": Family(mla=(192, 64, 256)),
    "minicpm3": Family(mla=(64, 32, None)),
    # attention beside layers of constant state
    "bamba": Family(kv_heads=8, layout=full_at("attn_layer_indices", LINEAR, all_full=False), state=mamba2()),
    "falcon_h1": Family(kv_heads=8, layout=every_layer(HYBRID), state=mamba2("mamba_d_ssm")),
    "granitemoehybrid": Family(layout=every_layer(LINEAR), reads_layer_types=True, rope_flag=True, state=mamba2()),
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "qwen3_next": Family(kv_heads=2, head_dim=256, layout=_GATED_DELTA, reads_layer_types=True, state=gated_delta),
    "qwen3_5_text": Family(kv_heads=4, head_dim=256, layout=_GATED_DELTA, reads_layer_types=True, state=gated_delta),
    "qwen3_5_moe_text": Family(
        kv_heads=2, head_dim=256, layout=_GATED_DELTA, reads_layer_types=True, state=gated_delta
    ),
}

NOT_HELD: Mapping[str, str] = {
    **dict.fromkeys(
        ("bloom", "codegen", "falcon", "gpt_neo", "gptj", "mpt"),
        "its attention does not go through transformers' attention interface",
    ),
    **dict.fromkeys(
        ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"), "it has no attention, so no KV cache to hold to a budget"
    ),
    "jamba": "its state cannot be continued from chunk to chunk",
    "llama4_text": "its chunked attention is not told to the attention function",
    "minimax": "it keeps its state in a cache class of its own",
}
"""Families known not to work, each with the reason; any other unknown family has an unknown attention layout."""

TEXT_TYPES: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "llava": "llama",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
"""The text model inside a composite one, where its `text_config` names no `model_type`."""
