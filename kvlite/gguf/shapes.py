"""The tensors that every file of a family has, and their shapes, as they follow from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

BY_LAYER = ("gemma4_text",)
"""Families whose heads and widths differ by layer: their shapes here are not to be compared."""

_NORMS = {
    **dict.fromkeys(("olmo2", "olmo3"), ("post_attention_norm", "post_ffw_norm")),
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "gemma4_text"), ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    ),
    "gpt_oss": ("attn_norm", "post_attention_norm"),
}
_USUAL_NORMS = ("attn_norm", "ffn_norm")
_NORMED_HEADS = ("qwen3", "qwen3_moe", "gemma3_text", "gemma4_text", "lfm2", "lfm2_moe")
_NORMED_WIDTHS = ("olmo2", "olmo3", "minimax_m2")
_LAYER_NORMS = ("gpt2", "nemotron", "stablelm", "starcoder2")
_UNGATED = ("gpt2", "nemotron", "starcoder2")


def top_shapes(config: Mapping[str, Any]) -> Shapes:
    """Shapes of the tensors outside the layers, by part and suffix; a head or a last norm may be called otherwise."""
    rows = (config["vocab_size"], config["hidden_size"])
    norms = dict.fromkeys(("output_norm.weight", "output_norm.bias", "token_embd_norm.weight"), rows[1:])
    positions = (config["max_position_embeddings"], config["hidden_size"])
    return {"token_embd.weight": rows, "output.weight": rows, "position_embd.weight": positions, **norms}


def top_names(config: Mapping[str, Any]) -> set[str]:
    """The tensors outside the layers that every file of the family has."""
    family = config["model_type"]
    biases = {"output_norm.bias"} if family in _LAYER_NORMS else set()
    return {"token_embd.weight", "output_norm.weight", *biases} | (
        {"position_embd.weight"} if family == "gpt2" else set()
    )


def layer_shapes(config: Mapping[str, Any], layer: int) -> Shapes:
    """Shapes, rows first, of the tensors that a layer has in every file of its family, by part and suffix."""
    family = config["model_type"]
    norms = _USUAL_NORMS[:1] if config.get("use_parallel_residual") else _NORMS.get(family, _USUAL_NORMS)
    suffixes = ("weight", "bias") if family in _LAYER_NORMS else ("weight",)
    types = config.get("layer_types")
    is_mixture = bool(_experts(config)) and layer >= config.get("num_dense_layers", 0)
    return {
        **{f"{part}.{suffix}": (config["hidden_size"],) for part in norms for suffix in suffixes},
        **(_convolution(config) if types and types[layer] == "conv" else _attention(config)),
        **(_mixture(config) if is_mixture else _dense(config)),
    }


def _attention(config: Mapping[str, Any]) -> Shapes:
    family, hidden, dim = config["model_type"], config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    found: Shapes = {"attn_output.weight": (hidden, queries)}
    if family in ("phi3", "gpt2"):
        found["attn_qkv.weight"] = (queries + 2 * keys, hidden)
        biases: Shapes = {"attn_qkv.bias": (queries + 2 * keys,), "attn_output.bias": (hidden,)}
        return found | (biases if family == "gpt2" else {})
    rows = {"attn_q": queries, "attn_k": keys} | ({} if config.get("attention_k_eq_v") else {"attn_v": keys})
    found |= {f"{part}.weight": (count, hidden) for part, count in rows.items()}
    has_biases = config.get("attention_bias") or config.get("use_bias")
    if family in ("qwen2", "qwen2_moe") or has_biases or config.get("use_qkv_bias"):
        found |= {f"{part}.bias": (count,) for part, count in rows.items()}
    if has_biases:
        found["attn_output.bias"] = (hidden,)
    if config.get("qk_layernorm"):
        found |= {f"attn_{one}_norm.weight": (rows[f"attn_{one}"] // dim, dim) for one in "qk"}
    if family in _NORMED_HEADS + _NORMED_WIDTHS:
        is_whole = family in _NORMED_WIDTHS
        found |= {f"attn_{one}_norm.weight": (rows[f"attn_{one}"] if is_whole else dim,) for one in "qk"}
    return found | ({"attn_sinks.weight": (config["num_attention_heads"],)} if family == "gpt_oss" else {})


def _convolution(config: Mapping[str, Any]) -> Shapes:
    hidden = config["hidden_size"]
    rows = {"shortconv.in_proj": 3 * hidden, "shortconv.out_proj": hidden, "shortconv.conv": hidden}
    biases: Shapes = {f"{part}.bias": (count,) for part, count in rows.items()} if config["conv_bias"] else {}
    maps: Shapes = {f"{part}.weight": (count, hidden) for part, count in rows.items()}
    return maps | {"shortconv.conv.weight": (hidden, config["conv_L_cache"])} | biases


def _dense(config: Mapping[str, Any]) -> Shapes:
    hidden, width = config["hidden_size"], config.get("n_inner") or config["intermediate_size"]
    if config["model_type"] == "phi3":
        return {"ffn_up.weight": (2 * width, hidden), "ffn_down.weight": (hidden, width)}
    rows = {"ffn_gate": width, "ffn_up": width, "ffn_down": hidden}
    if config["model_type"] in _UNGATED:
        del rows["ffn_gate"]
    found: Shapes = {f"{part}.weight": (count, width + hidden - count) for part, count in rows.items()}
    has_biases = config.get("mlp_bias") or config.get("use_bias") or config["model_type"] == "gpt2"
    return found | ({f"{part}.bias": (count,) for part, count in rows.items()} if has_biases else {})


def _experts(config: Mapping[str, Any]) -> int:
    """Experts of a layer that has nothing else in their place; 0 where there are none."""
    is_beside = config["model_type"] == "gemma4_text"
    return 0 if is_beside else config.get("num_experts") or config.get("num_local_experts") or 0


def _mixture(config: Mapping[str, Any]) -> Shapes:
    hidden, experts = config["hidden_size"], _experts(config)
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    rows = {"ffn_gate_exps": width, "ffn_up_exps": width, "ffn_down_exps": hidden}
    found: Shapes = {f"{part}.weight": (experts, count, width + hidden - count) for part, count in rows.items()}
    found["ffn_gate_inp.weight"] = (experts, hidden)
    if config["model_type"] == "gpt_oss":
        found |= {f"{part}.bias": (experts, count) for part, count in rows.items()}
        found["ffn_gate_inp.bias"] = (experts,)
    if config.get("use_expert_bias") or config["model_type"] == "minimax_m2":
        found["exp_probs_b.bias"] = (experts,)
    shared = config.get("shared_expert_intermediate_size") if config["model_type"] == "qwen2_moe" else None
    if shared:
        found |= dict.fromkeys(("ffn_gate_shexp.weight", "ffn_up_shexp.weight"), (shared, hidden))
        found |= {"ffn_down_shexp.weight": (hidden, shared), "ffn_gate_inp_shexp.weight": (hidden,)}
    return found
