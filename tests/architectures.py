"""Tiny configurations of the architectures kvlite runs, one line each; four layers, random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_MLA: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_SLIDING = {"sliding_window": 12}
_GEMMA = {**_SLIDING, "query_pre_attn_scalar": 16}
_GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 512}
_SHARED_KV = {
    **_SLIDING,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
_MIXED = ["sliding_attention", "full_attention"] * 2
_GATED_DELTA = {
    **_MOE,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
_MAMBA = {"mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}

SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": _SLIDING,
    "ministral": _SLIDING,
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3n_text": {
        **_SHARED_KV,
        "laurel_rank": 8,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {**_SHARED_KV, "global_head_dim": 16},
    "vaultgemma": _GEMMA,
    "phi": {},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _SLIDING,
    "granite": {},
    "smollm3": {},
    "starcoder2": {},
    "stablelm": {},
    "gpt_neox": {},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96},
    "cohere": {},
    "cohere2": _SLIDING,
    "exaone4": _SLIDING,
    "glm": {},
    "glm4": {},
    "nemotron": {},
    "helium": {},
    "ernie4_5": {},
    "arcee": {},
    "apertus": {},
    "seed_oss": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": _MOE,
    "nanochat": {},
    "cwm": _SLIDING,
    "mixtral": _MOE,
    "qwen2_moe": _MOE,
    "qwen3_moe": _MOE,
    "olmoe": _MOE,
    "gpt_oss": {**_MOE, **_SLIDING},
    "granitemoe": _MOE,
    "dots1": {**_MOE, **_SLIDING},
    "afmoe": {**_MOE, **_SLIDING},
    "bitnet": {},
    "aria_text": {**_MOE, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk1": {**_MOE, **_MLA, "head_dim": 8},
    "beam": {**_MOE, **_SLIDING, "layer_types": _MIXED},
    "flint": {**_MOE, **_SLIDING, "layer_types": _MIXED},
    "biogpt": {},
    "cohere2_moe": {**_MOE, **_SLIDING},
    "doge": {},
    "ernie4_5_moe": {**_MOE, "moe_num_experts": 4, "moe_k": 2},
    "exaone_moe": {**_MOE, **_SLIDING},
    "flex_olmo": _MOE,
    "glm4_moe_lite": {**_MOE, **_MLA},
    "granite_swa": _SLIDING,
    "granitemoe_swa": {**_MOE, **_SLIDING},
    "internlm3": {},
    "iquestcoder": {},
    "kolibri1": {**_MOE, **_SLIDING, "layer_types": _MIXED},
    "laguna": {**_MOE, **_SLIDING, "layer_types": _MIXED},
    "lfm2_moe": {**_MOE, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mellum": {**_MOE, **_SLIDING, "layer_types": _MIXED},
    "minimax_m2": _MOE,
    "ministral3": _SLIDING,
    "persimmon": {},
    "phimoe": _MOE,
    "youtu": {**_MLA, "head_dim": 8},
    "glm4_moe": _MOE,
    "deepseek_v2": {**_MOE, **_MLA},
    "deepseek_v3": {**_MOE, **_MLA, "head_dim": 8},
    "minicpm3": _MLA,
    "qwen3_next": _GATED_DELTA,
    "qwen3_5_text": _GATED_DELTA,
    "qwen3_5_moe_text": _GATED_DELTA,
    "lfm2": {
        "layer_types": ["conv", "conv", "full_attention", "full_attention"],
        "conv_L_cache": 3,
        "block_multiple_of": 8,
    },
    "lfm3": {
        **_SLIDING,
        "layer_types": ["conv", "sliding_attention", "conv", "full_attention"],
        "conv_L_cache": 3,
    },
    "nemotron_h": {
        **_MOE,
        "layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 2,
        "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 32,
    },
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8, **_MAMBA},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, **_MAMBA},
    "granitemoehybrid": {**_MOE, "layer_types": ["mamba", "attention", "mamba", "attention"]},
}

REPRESENTATIVES = (
    "llama",  # grouped queries
    "gemma2",  # sliding windows and capped logits
    "gemma3n_text",  # layers that share keys and values
    "gpt_oss",  # attention sinks, experts
    "deepseek_v3",  # latent keys and values
    "gpt2",  # learned positions
    "gpt_bigcode",  # one KV head
    "lfm2",  # convolutions beside attention
    "qwen3_next",  # linear attention beside attention
    "bamba",  # state spaces beside attention
)
"""One architecture for each kind of attention."""

REFUSED: dict[str, dict[str, Any]] = {
    "diffllama": {},
    "gpt_neox_japanese": {},
    "bloom": {"n_head": 4, "n_layer": 4},
    "falcon": {"head_dim": None},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 4, "rotary_dim": 8},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 4},
    "llama4_text": {
        **_MOE,
        "layer_types": ["chunked_attention", "chunked_attention", "full_attention", "full_attention"],
        "attention_chunk_size": 16,
        "intermediate_size_mlp": 64,
    },
    "minimax": _MOE,
    "jamba": {
        **_MOE,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}


def is_here(family: str) -> bool:
    """True where the installed transformers has the family, some of which came after the oldest one supported."""
    return family in CONFIG_MAPPING


def tiny_model(family: str, settings: dict[str, Any], **overrides: Any) -> PreTrainedModel:
    """A model of `family` with seeded random weights, in fp32, on the CPU, with eager attention."""
    fields = {**_COMMON, **settings, **overrides}
    config = AutoConfig.for_model(family, **{name: value for name, value in fields.items() if value is not None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    model.generation_config.eos_token_id = None  # some families have a default that a random model may well sample
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.15)
    return model
