"""The attention of each `model_type`: its layers, and the defaults of transformers' config class for absent fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, Literal

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.memory.fields import Fields

FULL, SLIDING, LINEAR, CONV, HYBRID = "full_attention", "sliding_attention", "linear_attention", "conv", "hybrid"
"""The types of layers, in transformers' words."""

IsFull = Callable[[Fields, int], bool]
"""(config, index of a layer) -> True where the layer has full attention."""

State = Callable[[Fields, int], int]
"""(config, bytes per element of the model's dtype) -> constant bytes per row of one layer.

They are those of the tensors in transformers' linear-attention cache layers, `conv_states` and `recurrent_states`.
"""

_FP32 = 4


@dataclass(frozen=True, slots=True)
class Family:
    """The attention of one `model_type`.

    `kv_heads`, `head_dim` and `window` stand in for an absent field: None is the query heads, hidden / query heads, no
    window. Where config.json lists no `layer_types`, the layers that `is_full` names are full, the others `others`.
    """

    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    others: str = FULL
    is_full: IsFull = lambda config, layer: False
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


def _every(period: int, key: str | None = None) -> IsFull:
    """Each `period`-th layer, counted from 1; config.json may name another period under `key`."""
    return lambda config, layer: (layer + 1) % ((config.optional_count(key) if key else None) or period) == 0


def _first_of(period: int) -> IsFull:
    """The first of each `period` layers."""
    return lambda config, layer: layer % period == 0


def _behind_dense(config: Fields, layer: int) -> bool:
    """Each `sliding_window_pattern`-th layer behind the dense ones in front, which have a period of their own."""
    dense = config.optional_count("first_k_dense_replace") if config.values.get("first_k_dense_replace") else 0
    key, default = ("sliding_window_pattern", 4)
    if layer < (dense or 0):
        key, default, dense = "prefix_dense_sliding_window_pattern", 1, 0
    return (layer - (dense or 0) + 1) % config.count(key, default=default) == 0


def _below_window_layers(default: int) -> IsFull:
    return lambda config, layer: layer < config.count("max_window_layers", default=default)


def _odd_or_from_window_layers(default: int) -> IsFull:
    return lambda config, layer: layer % 2 == 1 or layer >= config.count("max_window_layers", default=default)


def _with_rope(config: Fields, layer: int) -> bool:
    """Layers with rotary positions: `no_rope_layers` holds 1 for each of them."""
    rotates = config.whole_numbers("no_rope_layers")
    if rotates is None:
        return (layer + 1) % config.count("no_rope_layer_interval", default=4) != 0
    return layer >= len(rotates) or rotates[layer] != 0


def _listed(key: str, *, otherwise: bool) -> IsFull:
    """The layers that config.json lists under `key`; without a list all or none."""

    def is_full(config: Fields, layer: int) -> bool:
        listed = config.whole_numbers(key)
        return otherwise if listed is None else layer in listed

    return is_full


def _short_convolution(config: Fields, element_bytes: int) -> int:
    """LFM2: the last `conv_L_cache` inputs. [hidden, L]"""
    return config.count("hidden_size") * config.count("conv_L_cache", default=3) * element_bytes


def _gated_delta(config: Fields, element_bytes: int) -> int:
    """Qwen3-Next: convolved q, k, v inputs [2 K + V, kernel] and the fp32 state [H_V, K / H_K, V / H_V]."""
    k_heads = config.count("linear_num_key_heads", default=16)
    v_heads = config.count("linear_num_value_heads", default=32)
    k_dim = config.count("linear_key_head_dim", default=128)
    v_dim = config.count("linear_value_head_dim", default=128)
    kernel = config.count("linear_conv_kernel_dim", default=4)
    channels = 2 * k_heads * k_dim + v_heads * v_dim
    return channels * kernel * element_bytes + v_heads * k_dim * v_dim * _FP32


def _mamba2(config: Fields, element_bytes: int, inner_key: str | None = None) -> int:
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


_LISTS_TYPES = partial(Family, reads_layer_types=True)
_LISTS_AND_SLIDES = partial(_LISTS_TYPES, window=4096, others=SLIDING)
_MAY_SLIDE = partial(_LISTS_AND_SLIDES, window_flag="use_sliding_window")
_GATED_DELTA = partial(_LISTS_TYPES, others=LINEAR, is_full=_every(4, "full_attention_interval"), state=_gated_delta)
_WINDOWED = partial(Family, others=SLIDING)


def _alike(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


FAMILIES: Mapping[str, Family] = {
    # grouped queries, every layer full
    **_alike("apertus arcee cohere flex_olmo granite granitemoe granitemoeshared hunyuan_v1_dense", Family()),
    **_alike("doge hunyuan_v1_moe hyperclovax jais2 llama nanochat nemotron olmo olmo2 olmoe phi", Family()),
    **_alike("ernie4_5 glm glm4", Family(kv_heads=2, head_dim=128)),
    **_alike("hy_v3 minimax_m2 seed_oss solar_open", Family(kv_heads=8, head_dim=128)),
    "bitnet": Family(kv_heads=5),
    "ernie4_5_moe": Family(kv_heads=4),
    "gemma": Family(kv_heads=16, head_dim=256),
    "glm4_moe": Family(kv_heads=8),
    "gpt_neox": Family(grouped=False, reads_head_dim=False),
    "helium": Family(kv_heads=20, head_dim=128),
    "internlm3": Family(kv_heads=2, head_dim=128),
    "iquestcoder": Family(kv_heads=8, head_dim=128),
    "persimmon": Family(grouped=False, reads_head_dim=False),
    "phimoe": Family(kv_heads=8),
    "stablelm": Family(kv_heads=32, reads_head_dim=False),
    # learned positions
    "biogpt": Family(positions="learned", max_positions=1024, grouped=False, reads_head_dim=False),
    "gpt2": Family(positions="learned", max_positions=1024, grouped=False, reads_head_dim=False),
    "gpt_bigcode": Family(positions="learned", max_positions=1024, reads_head_dim=False, multi_query=True),
    "opt": Family(positions="learned", max_positions=2048, grouped=False, reads_head_dim=False),
    # one window for all layers, where config.json sets one
    "mistral": _WINDOWED(kv_heads=8, window=4096),
    "ministral3": _WINDOWED(kv_heads=8, head_dim=128),
    "mixtral": _WINDOWED(kv_heads=8),
    "phi3": _WINDOWED(),
    "qwen3_moe": _WINDOWED(kv_heads=4, window=4096, window_flag="use_sliding_window"),
    "starcoder2": _WINDOWED(kv_heads=2),
    # full and sliding layers mixed
    **_alike("gemma2 vaultgemma", _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, is_full=_every(2))),
    **_alike("exaone4 exaone_moe", _LISTS_AND_SLIDES(kv_heads=32, is_full=_every(4, "sliding_window_pattern"))),
    "afmoe": _LISTS_AND_SLIDES(kv_heads=16, head_dim=128, window=1024, is_full=_every(4, "global_attn_every_n_layers")),
    "cohere2": _LISTS_AND_SLIDES(is_full=_every(4, "sliding_window_pattern")),
    "cohere2_moe": _LISTS_AND_SLIDES(kv_heads=64, head_dim=128, is_full=_behind_dense),
    "cwm": _LISTS_AND_SLIDES(kv_heads=8, head_dim=128, window=8192, is_full=lambda config, layer: layer % 4 == 0),
    "dots1": _LISTS_AND_SLIDES(kv_heads=32, is_full=_below_window_layers(62)),
    "gemma3_text": _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, is_full=_every(6, "sliding_window_pattern")),
    "gemma3n_text": _LISTS_AND_SLIDES(kv_heads=2, head_dim=256, window=512, is_full=_every(5)),
    "gemma4_text": _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, window=512, is_full=_every(6), global_dims=True),
    **_alike("granite_swa granitemoe_swa", _LISTS_AND_SLIDES(window=128, is_full=_first_of(4))),
    "kolibri1": _LISTS_AND_SLIDES(kv_heads=4, head_dim=128, window=513, is_full=_every(5)),
    "laguna": _LISTS_AND_SLIDES(kv_heads=8, head_dim=128, window=512, is_full=_every(1)),
    "mellum": _LISTS_AND_SLIDES(kv_heads=4, head_dim=128, window=1024, is_full=_every(1)),
    "gpt_oss": _LISTS_AND_SLIDES(kv_heads=8, head_dim=64, window=128, is_full=_every(2)),
    "ministral": _LISTS_AND_SLIDES(kv_heads=8),
    "olmo3": _LISTS_AND_SLIDES(is_full=_every(4)),
    "qwen2": _MAY_SLIDE(kv_heads=32, is_full=_below_window_layers(28)),
    "qwen2_moe": _MAY_SLIDE(kv_heads=16, is_full=_odd_or_from_window_layers(28)),
    "qwen3": _MAY_SLIDE(kv_heads=32, head_dim=128, is_full=_below_window_layers(28)),
    "smollm3": _MAY_SLIDE(kv_heads=4, window=None, is_full=_with_rope),
    # latent attention, stored expanded per head
    **_alike("deepseek_v2 deepseek_v3", Family(mla=(128, 64, 128))),
    "glm4_moe_lite": Family(mla=(192, 64, 256)),
    "minicpm3": Family(mla=(64, 32, None)),
    "youtu": Family(mla=(128, 64, 128)),
    # attention beside layers of constant state
    **_alike(
        "lfm2 lfm2_moe",
        _LISTS_TYPES(
            kv_heads=8, others=CONV, is_full=_listed("full_attn_idxs", otherwise=True), state=_short_convolution
        ),
    ),
    "bamba": Family(kv_heads=8, others=LINEAR, is_full=_listed("attn_layer_indices", otherwise=False), state=_mamba2),
    "falcon_h1": Family(kv_heads=8, others=HYBRID, state=partial(_mamba2, inner_key="mamba_d_ssm")),
    "granitemoehybrid": _LISTS_TYPES(others=LINEAR, rope_flag=True, state=_mamba2),
    "qwen3_next": _GATED_DELTA(kv_heads=2, head_dim=256),
    "qwen3_5_text": _GATED_DELTA(kv_heads=4, head_dim=256),
    "qwen3_5_moe_text": _GATED_DELTA(kv_heads=2, head_dim=256),
}

NOT_HELD: Mapping[str, str] = {
    **_alike(
        "bloom codegen cpmant falcon gpt_neo gptj mpt openai-gpt",
        "its attention does not go through transformers' attention interface",
    ),
    **_alike("falcon_mamba mamba mamba2 rwkv xlstm", "it has no attention, so no KV cache to hold to a budget"),
    "jamba": "its state cannot be continued from chunk to chunk",
    "llama4_text": "its chunked attention is not told to the attention function",
    "minimax": "it keeps its state in a cache class of its own",
    "diffllama": "its attention is the difference of two, of which the attention function sees one",
    "gpt_neox_japanese": "its attention does not go through transformers' attention interface",
    "dbrx": "its config.json nests what kvlite reads at the top",
    "longcat_flash": "each of its layers has two attentions",
    "nemotron_h": "kvlite does not read its pattern of mamba, attention, expert and MLP layers",
    "mimo_v2_flash": "its sliding layers have other KV heads than config.json's own",
    **_alike("deepseek_v32 deepseek_v4 glm_moe_dsa", "an indexer of its own chooses the tokens it attends to"),
    **_alike("bailing_hybrid kimi_linear recurrent_gemma zamba zamba2", "its state is of a kind kvlite does not know"),
    **_alike(
        "bart bigbird_pegasus blenderbot blenderbot-small led marian mbart mt5 pegasus plbart "
        "prophetnet t5 trocr umt5 whisper",
        "it is an encoder and a decoder, no causal language model",
    ),
    **_alike(
        "albert bert big_bird camembert data2vec-text deberta deberta-v2 distilbert "
        "electra ernie megatron-bert modernbert roberta xlm-roberta",
        "it is an encoder, no causal language model",
    ),
}
"""Families known not to work, each with the reason; any other unknown family has an unknown attention layout."""

TEXT_TYPES: Mapping[str, str] = {"llava": "llama", "mistral3": "mistral"}
"""The text model inside a composite one whose `text_config` names no `model_type`, where it is not called NAME_text."""

COMPOSITES = frozenset(
    ("aya_vision", "cohere2_vision", "fast_vlm", "gemma3", "gemma3n", "gemma4", "idefics3", "internvl", "lfm2_vl",
     "lighton_ocr", "llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3", "perception_lm",
     "smolvlm", "vipllava")
)  # fmt: skip
"""Models that also see, of which kvlite loads the text part alone; it attends as a text model of its own does."""

_WHOLE = frozenset(("qwen3_5", "qwen3_5_moe"))
"""Models that also see and that transformers loads as causal language models."""


def is_composite(config: Mapping[str, Any]) -> bool:
    """True of a config.json of which kvlite loads the text part alone."""
    return config.get("model_type") in COMPOSITES


def refuse_unknown_part(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel where the text part is not one that kvlite takes out of the whole."""
    name = config.get("model_type")
    is_part = isinstance(config.get("text_config"), Mapping) and ("vision_config" in config or "audio_config" in config)
    if is_part and name not in COMPOSITES | _WHOLE:
        raise UnsupportedModel(f"'{name}' models also see or hear, and kvlite does not know their text part")


def class_defaults(name: str) -> Mapping[str, object]:
    """The values that config.json may leave to transformers' class of a family, by field."""
    table = json.loads((files("kvlite.memory") / "class_defaults.json").read_text(encoding="utf-8"))
    found: Mapping[str, object] = table.get(name, {})
    return found
