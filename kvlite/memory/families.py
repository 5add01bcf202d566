"""Defaults of transformers' config classes for fields that config.json may leave out, by `model_type`. A table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
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


_LISTS_TYPES = partial(Family, reads_layer_types=True)
_LISTS_AND_SLIDES = partial(_LISTS_TYPES, window=4096)
_MAY_SLIDE = partial(_LISTS_AND_SLIDES, window_flag="use_sliding_window")
_GATED_DELTA = partial(_LISTS_TYPES, layout=full_every(4, LINEAR, "full_attention_interval"), state=gated_delta)
_PATTERN_OF_4 = full_every(4, SLIDING, "sliding_window_pattern")
_WINDOWED = every_layer(SLIDING)


def _alike(names: str, family: Family) -> dict[str, Family]:
    return dict.fromkeys(names.split(), family)


FAMILIES: Mapping[str, Family] = {
    # grouped queries, every layer full
    **_alike("apertus arcee cohere flex_olmo granite granitemoe granitemoeshared hunyuan_v1_dense", Family()),
    **_alike("hunyuan_v1_moe hyperclovax jais2 llama nanochat nemotron olmo olmo2 olmoe phi", Family()),
    **_alike("ernie4_5 glm glm4", Family(kv_heads=2, head_dim=128)),
    **_alike("hy_v3 minimax_m2 seed_oss solar_open", Family(kv_heads=8, head_dim=128)),
    "ernie4_5_moe": Family(kv_heads=4),
    "gemma": Family(kv_heads=16, head_dim=256),
    "glm4_moe": Family(kv_heads=8),
    "gpt_neox": Family(grouped=False, reads_head_dim=False),
    "helium": Family(kv_heads=20, head_dim=128),
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
    **_alike("gemma2 vaultgemma", _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, layout=full_every(2, SLIDING))),
    **_alike("exaone4 exaone_moe", _LISTS_AND_SLIDES(kv_heads=32, layout=_PATTERN_OF_4)),
    "cohere2": _LISTS_AND_SLIDES(layout=_PATTERN_OF_4),
    "cwm": _LISTS_TYPES(kv_heads=8, head_dim=128, window=8192, layout=full_first_of(4)),
    "dots1": _LISTS_AND_SLIDES(kv_heads=32, layout=sliding_from(62)),
    "gemma3_text": _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, layout=full_every(6, SLIDING, "sliding_window_pattern")),
    "gemma3n_text": _LISTS_TYPES(kv_heads=2, head_dim=256, window=512, layout=full_every(5, SLIDING)),
    "gemma4_text": _LISTS_TYPES(kv_heads=4, head_dim=256, window=512, layout=full_every(6, SLIDING), global_dims=True),
    "gpt_oss": _LISTS_TYPES(kv_heads=8, head_dim=64, window=128, layout=full_every(2, SLIDING)),
    "ministral": _LISTS_AND_SLIDES(kv_heads=8, layout=_WINDOWED),
    "olmo3": _LISTS_AND_SLIDES(layout=full_every(4, SLIDING)),
    "qwen2": _MAY_SLIDE(kv_heads=32, layout=sliding_from(28)),
    "qwen2_moe": _MAY_SLIDE(kv_heads=16, layout=alternate_below(28)),
    "qwen3": _MAY_SLIDE(kv_heads=32, head_dim=128, layout=sliding_from(28)),
    "smollm3": _MAY_SLIDE(kv_heads=4, window=None, layout=sliding_without_rope),
    # latent attention, stored expanded per head
    **_alike("deepseek_v2 deepseek_v3", Family(mla=(128, 64, 128))),
    "glm4_moe_lite": Family(mla=(192, 64, 256)),
    "minicpm3": Family(mla=(64, 32, None)),
    # attention beside layers of constant state
    **_alike(
        "lfm2 lfm2_moe",
        _LISTS_TYPES(kv_heads=8, layout=full_at("full_attn_idxs", CONV, all_full=True), state=short_convolution),
    ),
    "bamba": Family(kv_heads=8, layout=full_at("attn_layer_indices", LINEAR, all_full=False), state=mamba2()),
    "falcon_h1": Family(kv_heads=8, layout=every_layer(HYBRID), state=mamba2("mamba_d_ssm")),
    "granitemoehybrid": _LISTS_TYPES(layout=every_layer(LINEAR), rope_flag=True, state=mamba2()),
    "qwen3_next": _GATED_DELTA(kv_heads=2, head_dim=256),
    "qwen3_5_text": _GATED_DELTA(kv_heads=4, head_dim=256),
    "qwen3_5_moe_text": _GATED_DELTA(kv_heads=2, head_dim=256),
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
