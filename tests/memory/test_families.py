"""The shape read from config.json equals what transformers' attention modules and caches really hold, per family."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kvlite.memory.families import FAMILIES
from kvlite.memory.shape import ModelShape

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,  # not hidden / heads, so that reading or ignoring the field shows
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_num_experts": 4,
    "moe_k": 2,
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 20}
GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 512}
WINDOW = {"sliding_window": 12}
QWEN_WINDOW = {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}
GATED_DELTA = {
    **MOE,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
MIXED = ["sliding_attention", "full_attention"] * 2

# What a family needs beyond COMMON; None takes a field away, where the modules build only for their own head_dim.
TINY: dict[str, dict[str, Any]] = {
    "afmoe": {**MOE, **WINDOW},
    "aria_text": {**MOE, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk1": {**MOE, **MLA, "num_key_value_heads": 4, "head_dim": None},
    "beam": {**MOE, **WINDOW},
    "flint": {**MOE, **WINDOW},
    "lfm3": {**WINDOW, "conv_L_cache": 3},
    "nemotron_h": {
        **MOE,
        "hybrid_override_pattern": "M*E-",
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 2,
        "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 32,
    },
    "cohere2": WINDOW,
    "cohere2_moe": {**MOE, **WINDOW},
    "granite_swa": WINDOW,
    "granitemoe_swa": {**MOE, **WINDOW},
    "kolibri1": {**MOE, **WINDOW},
    "laguna": {**MOE, **WINDOW, "layer_types": MIXED},
    "mellum": {**MOE, **WINDOW, "layer_types": MIXED},
    "phimoe": {**MOE, "head_dim": None},
    "doge": {"head_dim": None},
    "bitnet": {"head_dim": None},
    "persimmon": {"head_dim": None},
    "youtu": {**MLA, "num_key_value_heads": 4, "head_dim": None},
    "cwm": WINDOW,
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "deepseek_v2": {**MOE, **MLA, "num_key_value_heads": 4, "head_dim": None},
    "deepseek_v3": {**MOE, **MLA, "num_key_value_heads": 4, "head_dim": None},
    "dots1": {**MOE, **WINDOW, "max_window_layers": 2},
    "exaone4": WINDOW,
    "exaone_moe": {**MOE, **WINDOW},
    "falcon_h1": {"mamba_d_ssm": 64, **MAMBA, "mamba_n_heads": 4},
    "gemma2": {**WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {**WINDOW, "query_pre_attn_scalar": 16, "sliding_window_pattern": 3},
    "gemma3n_text": {
        **WINDOW,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "layer_types": MIXED,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        **WINDOW,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "num_kv_shared_layers": 2,
        "layer_types": MIXED,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
    },
    "glm4_moe_lite": {**MOE, **MLA, "num_key_value_heads": 4, "head_dim": None},
    "gpt2": {**GPT2, "head_dim": None},
    "gpt_bigcode": {**GPT2, "head_dim": None},
    "gpt_neox": {"head_dim": None},
    "gpt_oss": {**MOE, **WINDOW},
    "granitemoehybrid": {**MOE, **MAMBA, "layer_types": ["linear_attention", "full_attention"] * 2},
    "helium": {"head_dim": None, "num_attention_heads": 2, "hidden_size": 256},  # its head_dim default is 128
    "lfm2": {"full_attn_idxs": [1, 3], "conv_L_cache": 3, "block_multiple_of": 8},
    "lfm2_moe": {**MOE, "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3, "num_dense_layers": 1},
    "minicpm3": {**MLA, "num_key_value_heads": 4, "head_dim": None},
    "ministral": WINDOW,
    "ministral3": WINDOW,
    "mistral": WINDOW,
    "mixtral": {**MOE, **WINDOW},
    "olmo3": WINDOW,
    "olmoe": {**MOE, "head_dim": None},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96, "head_dim": None},
    "phi3": WINDOW,
    "qwen2": QWEN_WINDOW,
    "qwen2_moe": {**MOE, **QWEN_WINDOW},
    "qwen3": QWEN_WINDOW,
    "qwen3_moe": {**MOE, **QWEN_WINDOW},
    "qwen3_5_moe_text": GATED_DELTA,
    "qwen3_5_text": GATED_DELTA,
    "qwen3_next": GATED_DELTA,
    "smollm3": {**WINDOW, "use_sliding_window": True},
    "stablelm": {"head_dim": None},
    "starcoder2": WINDOW,
    "vaultgemma": {**WINDOW, "query_pre_attn_scalar": 16},
}
Held = dict[int, tuple[int, int, int, int | None]]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_shape_equals_what_the_modules_hold(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    given = {key: value for key, value in {**COMMON, **MOE, **TINY.get(family, {})}.items() if value is not None}
    held: Held = {}

    def probe(module: Any, q: Any, k: Any, v: Any, *rest: Any, **kw: Any) -> Any:
        window = kw["sliding_window"] if "sliding_window" in kw else getattr(module, "sliding_window", None)
        held[module.layer_idx] = (k.shape[1], k.shape[3], v.shape[3], window)
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "probe", probe)
    saved, states = _run(family, given)
    for raw in ({**given, "model_type": family}, saved):
        shape = ModelShape.from_config(raw, dtype="bfloat16")
        read = {i: (x.kv_heads, x.k_dim, x.v_dim, x.window) for i, x in enumerate(shape.layers) if x.kv_heads}
        assert read == held
        assert [layer.state_bytes for layer in shape.layers] == states


def _run(family: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """The config as transformers saves it, and the bytes of constant state per layer after a forward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, about tiny odd configs
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **given)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="probe", dtype=torch.bfloat16).eval()
        cache = DynamicCache(config=config)
        with torch.no_grad():
            model(torch.randint(3, 120, (1, 7)), past_key_values=cache, use_cache=True)
    states = [
        sum(
            tensor.nbytes
            for name in ("conv_states", "recurrent_states")
            for tensor in getattr(layer, name, {}).values()
            if tensor is not None
        )
        for layer in cache.layers
    ]
    shared = [0] * (config.num_hidden_layers - len(states))  # older caches leave out layers that share keys
    return json.loads(config.to_json_string()), states + shared
