"""The attention of each `model_type`: its layers, and the defaults of transformers' config class for absent fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, Literal

from kvlite.errors import UnsupportedModel
from kvlite.memory.constant_state import (
    State,
    gated_delta,
    gated_delta_of_olmo,
    mamba2,
    mamba2_of_nemotron,
    short_convolution,
)
from kvlite.memory.layer_types import (
    CONV,
    FULL,
    HYBRID,
    LINEAR,
    SLIDING,
    IsFull,
    Types,
    behind_dense,
    below_window_layers,
    convolutions_first,
    every,
    first_of,
    listed,
    odd_or_from_window_layers,
    or_last,
    patterned,
    with_rope,
)


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
    positions: Literal["rotary", "learned", "none"] = "rotary"
    state: State | None = None
    mla: tuple[int, int, int | None] | None = None  # qk_nope_head_dim, qk_rope_head_dim, v_head_dim (None: as head_dim)
    grouped: bool = True  # else as many KV heads as query heads
    reads_head_dim: bool = True  # else head_dim is always hidden / query heads
    reads_layer_types: bool = False
    types: Types | None = None
    window_flag: str | None = None  # the window counts only where this field is true
    rope_flag: bool = False  # rotary only where position_embedding_type is "rope"
    names_rope: bool = False  # rotary only where rope_parameters names rope_theta
    multi_query: bool = False  # one KV head unless `multi_query` is false
    global_dims: bool = False  # full layers read global_head_dim and num_global_key_value_heads


_LISTS_TYPES = partial(Family, reads_layer_types=True)
_LISTS_AND_SLIDES = partial(_LISTS_TYPES, window=4096, others=SLIDING)
_MAY_SLIDE = partial(_LISTS_AND_SLIDES, window_flag="use_sliding_window")
_GATED_DELTA = partial(_LISTS_TYPES, others=LINEAR, is_full=every(4, "full_attention_interval"), state=gated_delta)
_WINDOWED = partial(Family, others=SLIDING)


def _alike(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


FAMILIES: Mapping[str, Family] = {
    # grouped queries, every layer full
    **_alike("apertus arcee cohere flex_olmo granite granitemoe granitemoeshared hunyuan_v1_dense", Family()),
    **_alike("aria_text doge hunyuan_v1_moe hyperclovax jais2 llama nanochat nemotron olmo olmo2 olmoe phi", Family()),
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
    **_alike("gemma2 vaultgemma", _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, is_full=every(2))),
    **_alike("exaone4 exaone_moe", _LISTS_AND_SLIDES(kv_heads=32, is_full=every(4, "sliding_window_pattern"))),
    "afmoe": _LISTS_AND_SLIDES(kv_heads=16, head_dim=128, window=1024, is_full=every(4, "global_attn_every_n_layers")),
    "cohere2": _LISTS_AND_SLIDES(is_full=every(4, "sliding_window_pattern")),
    "cohere2_moe": _LISTS_AND_SLIDES(kv_heads=64, head_dim=128, is_full=behind_dense),
    "cwm": _LISTS_AND_SLIDES(kv_heads=8, head_dim=128, window=8192, is_full=lambda config, layer: layer % 4 == 0),
    "dots1": _LISTS_AND_SLIDES(kv_heads=32, is_full=below_window_layers(62)),
    "gemma3_text": _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, is_full=every(6, "sliding_window_pattern")),
    "gemma3n_text": _LISTS_AND_SLIDES(kv_heads=2, head_dim=256, window=512, is_full=every(5)),
    "gemma4_text": _LISTS_AND_SLIDES(kv_heads=4, head_dim=256, window=512, is_full=every(6), global_dims=True),
    **_alike("granite_swa granitemoe_swa", _LISTS_AND_SLIDES(window=128, is_full=first_of(4))),
    "kolibri1": _LISTS_AND_SLIDES(kv_heads=4, head_dim=128, window=513, is_full=every(5)),
    "laguna": _LISTS_AND_SLIDES(kv_heads=8, head_dim=128, window=512, is_full=every(1)),
    "mellum": _LISTS_AND_SLIDES(kv_heads=4, head_dim=128, window=1024, is_full=every(1)),
    "beam": _LISTS_AND_SLIDES(kv_heads=8, head_dim=128, window=512, is_full=or_last(every(6))),
    "flint": _LISTS_AND_SLIDES(
        kv_heads=4, head_dim=128, window=513, is_full=or_last(lambda config, layer: layer < 2 or layer % 4 == 1)
    ),
    "gpt_oss": _LISTS_AND_SLIDES(kv_heads=8, head_dim=64, window=128, is_full=every(2)),
    "ministral": _LISTS_AND_SLIDES(kv_heads=8),
    "olmo3": _LISTS_AND_SLIDES(is_full=every(4)),
    "qwen2": _MAY_SLIDE(kv_heads=32, is_full=below_window_layers(28)),
    "qwen2_moe": _MAY_SLIDE(kv_heads=16, is_full=odd_or_from_window_layers(28)),
    "qwen3": _MAY_SLIDE(kv_heads=32, head_dim=128, is_full=below_window_layers(28)),
    "smollm3": _MAY_SLIDE(kv_heads=4, window=None, is_full=with_rope),
    # latent attention, stored expanded per head
    **_alike("axk1 deepseek_v2 deepseek_v3", Family(mla=(128, 64, 128))),
    "glm4_moe_lite": Family(mla=(192, 64, 256)),
    "minicpm3": Family(mla=(64, 32, None)),
    "youtu": Family(mla=(128, 64, 128)),
    # attention beside layers of constant state
    **_alike(
        "lfm2 lfm2_moe",
        _LISTS_TYPES(
            kv_heads=8, others=CONV, is_full=listed("full_attn_idxs", otherwise=True), state=short_convolution
        ),
    ),
    "lfm3": _LISTS_TYPES(
        kv_heads=4,
        head_dim=128,
        window=256,
        types=lambda config: config.names("layer_types") or convolutions_first(config),
        state=partial(short_convolution, kernel=7),
    ),
    "nemotron_h": Family(kv_heads=8, head_dim=128, types=patterned, positions="none", state=mamba2_of_nemotron),
    "olmo_hybrid": _LISTS_TYPES(others=LINEAR, is_full=every(4), names_rope=True, state=gated_delta_of_olmo),
    "bamba": Family(kv_heads=8, others=LINEAR, is_full=listed("attn_layer_indices", otherwise=False), state=mamba2),
    "falcon_h1": Family(kv_heads=8, others=HYBRID, state=partial(mamba2, inner_key="mamba_d_ssm")),
    "granitemoehybrid": _LISTS_TYPES(others=LINEAR, rope_flag=True, state=mamba2),
    "qwen3_next": _GATED_DELTA(kv_heads=2, head_dim=256),
    "qwen3_5_text": _GATED_DELTA(kv_heads=4, head_dim=256),
    "qwen3_5_moe_text": _GATED_DELTA(kv_heads=2, head_dim=256),
}

NOT_HELD: Mapping[str, str] = {
    **_alike(
        "bloom codegen cpmant falcon gpt_neo gptj mpt openai-gpt xglm xlm xlnet zaya",
        "its attention does not go through transformers' attention interface",
    ),
    **_alike("falcon_mamba mamba mamba2 rwkv xlstm", "it has no attention, so no KV cache to hold to a budget"),
    "jamba": "its state cannot be continued from chunk to chunk",
    "llama4_text": "its chunked attention is not told to the attention function",
    "minimax": "it keeps its state in a cache class of its own",
    "diffllama": "its attention is the difference of two, of which the attention function sees one",
    "gpt_neox_japanese": "its attention does not go through transformers' attention interface",
    "dbrx": "its config.json nests what kvlite reads at the top",
    "hrm_text": "it goes through its layers several times for each token",
    "longcat_flash": "each of its layers has two attentions",
    "mimo_v2_flash": "its sliding layers have other KV heads than config.json's own",
    **_alike(
        "axk2 deepseek_v32 deepseek_v4 dots3_note_text glm_moe_dsa hy_v4 minimax_m3_vl_text qwen4_exp_text",
        "an indexer of its own chooses the tokens it attends to",
    ),
    **_alike("bailing_hybrid kimi_linear recurrent_gemma zamba zamba2", "its state is of a kind kvlite does not know"),
    **_alike(
        "bart bigbird_pegasus blenderbot blenderbot-small led marian mbart mt5 mvp pegasus plbart "
        "prophetnet t5 trocr umt5 whisper",
        "it is an encoder and a decoder, no causal language model",
    ),
    **_alike(
        "albert bert big_bird camembert data2vec-text deberta deberta-v2 distilbert "
        "electra ernie megatron-bert modernbert rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta "
        "xlm-roberta-xl xmod",
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
