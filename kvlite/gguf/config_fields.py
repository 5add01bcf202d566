"""Fields of config.json that a family takes besides the usual ones, from a GGUF header.

llama.cpp has some fixed in code where transformers has a field, and lists by layer what transformers has once.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvlite.errors import UnsupportedModel
from kvlite.gguf.header import Header
from kvlite.gguf.rope import Config, by_layer, decimal, one_of, rope_of, rotated_part, wanted


def _has(header: Header, name: str) -> bool:
    return f"blk.0.{name}" in header.tensors


def llama(header: Header) -> Config:
    """Llama: biases are where the file has them."""
    return {"attention_bias": _has(header, "attn_q.bias"), "mlp_bias": _has(header, "ffn_up.bias")}


def mixtral(header: Header) -> Config:
    """Mixtral: the experts, of which no layer has a window."""
    return {
        "num_local_experts": header.about("expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "sliding_window": None,
    }


def experts(header: Header) -> Config:
    """Qwen's mixtures: the experts, and one that all tokens share."""
    shared = header.about("expert_shared_feed_forward_length")
    return {
        "num_experts": wanted(header, "expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "moe_intermediate_size": wanted(header, "expert_feed_forward_length"),
        "norm_topk_prob": header.architecture == "qwen3moe",  # llama.cpp has it fixed for each
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    } | ({"shared_expert_intermediate_size": shared} if shared else {})


def gemma(header: Header) -> Config:
    """Gemma: its activation."""
    return {"hidden_activation": "gelu_pytorch_tanh"}


def _query_scalar(header: Header, largest: int) -> int:
    """The number whose root divides logits: the head dim, but for the largest of the family hidden / heads."""
    is_largest = header.about("block_count") == largest
    heads, hidden = wanted(header, "attention.head_count"), wanted(header, "embedding_length")
    return int(hidden // heads if is_largest else header.about("attention.key_length"))


def gemma2(header: Header) -> Config:
    """Gemma 2: capped logits, and every second layer slides."""
    return gemma(header) | {
        "query_pre_attn_scalar": _query_scalar(header, 46),
        "attn_logit_softcapping": header.about("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.about("final_logit_softcapping", 30.0),
        "sliding_window": header.about("attention.sliding_window", 4096),
        "layer_types": _layer_types(header, 2),
    }


def gemma3(header: Header) -> Config:
    """Gemma 3: five layers of six slide, with rotations of their own."""
    local = header.about("rope.freq_base_swa", 10000.0)
    window = header.about("attention.sliding_window")  # without one every layer is full
    return gemma(header) | {
        "query_pre_attn_scalar": _query_scalar(header, 62),
        "final_logit_softcapping": header.about("final_logit_softcapping") or None,
        **({"sliding_window": window} if window else {}),
        "layer_types": _layer_types(header, 6 if window else None),
        "rope_parameters": {
            "full_attention": rope_of(header) | {"rope_theta": decimal(header.about("rope.freq_base", 1e6))},
            "sliding_attention": {"rope_type": "default", "rope_theta": decimal(local)},
        },
    }


def _layer_types(header: Header, period: int | None) -> list[str]:
    """Types of layers: as the file lists them, or each `period`-th is full (None: all) and the others have a window."""
    layers = range(1, header.about("block_count") + 1)
    slides = [False for _ in layers]
    if period is not None:
        given = header.about("attention.sliding_window_pattern", period)
        slides = list(given) if isinstance(given, (list, tuple)) else [bool(not given or n % given) for n in layers]
    return ["sliding_attention" if one else "full_attention" for one in slides]


def phi3(header: Header) -> Config:
    """Phi-3: part of a head rotates, and texts are long or short."""
    head_dim = wanted(header, "embedding_length") // wanted(header, "attention.head_count")
    rope = rope_of(header) | {"partial_rotary_factor": header.about("rope.dimension_count", head_dim) / head_dim}
    original = rope.get("original_max_position_embeddings", header.about("context_length"))
    return {
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": header.about("attention.sliding_window") or None,
    }


def granite(header: Header) -> Config:
    """Granite: numbers that embeddings, residuals, attention and logits are multiplied by."""
    return llama(header) | {
        "embedding_multiplier": decimal(header.about("embedding_scale", 1.0)),
        "residual_multiplier": decimal(header.about("residual_scale", 1.0)),
        "attention_multiplier": decimal(wanted(header, "attention.scale")),
        "logits_scaling": decimal(header.about("logit_scale", 1.0)),
    }


def olmo3(header: Header) -> Config:
    """OLMo 3, a file of the family olmo2 with windows: where layers slide, positions are not scaled."""
    theta = decimal(header.about("rope.freq_base_swa", header.about("rope.freq_base", 10000.0)))
    return {
        "sliding_window": header.about("attention.sliding_window"),
        "layer_types": _layer_types(header, 4),
        "rope_parameters": {
            "full_attention": rope_of(header),
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
    }


def gpt_oss(header: Header) -> Config:
    """gpt-oss: every second layer slides; YaRN's bounds are not rounded, which no file says."""
    rope = rope_of(header)
    return {
        "intermediate_size": wanted(header, "expert_feed_forward_length"),
        "num_local_experts": wanted(header, "expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "attention_bias": _has(header, "attn_q.bias"),
        "sliding_window": wanted(header, "attention.sliding_window"),
        "layer_types": _layer_types(header, 2),
        "rope_parameters": rope | ({"truncate": False} if rope["rope_type"] == "yarn" else {}),
    }


def lfm2(header: Header) -> Config:
    """LFM2: layers without KV heads are convolutions."""
    if header.about("attention.sliding_window"):
        raise UnsupportedModel(f"{header.path.name} is an LFM2 with windows, which transformers does not have")
    heads = by_layer(header, "attention.head_count_kv")
    return {
        "num_key_value_heads": one_of(header, "attention.head_count_kv", {count for count in heads if count}),
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "norm_eps": decimal(wanted(header, "attention.layer_norm_rms_epsilon")),
        "conv_L_cache": wanted(header, "shortconv.l_cache"),
        "conv_bias": any(name.endswith("shortconv.conv.bias") for name in header.tensors),
        "block_auto_adjust_ff_dim": False,
    }


def lfm2_moe(header: Header) -> Config:
    """LFM2's mixtures: the first layers are dense, and a bias takes part in the choice of experts."""
    function = header.about("expert_gating_func", 2)
    if function != 2:
        raise UnsupportedModel(f"{header.path.name} gates experts by function {function}; LFM2's is the sigmoid, 2")
    return lfm2(header) | {
        "num_experts": wanted(header, "expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "moe_intermediate_size": wanted(header, "expert_feed_forward_length"),
        "num_dense_layers": header.about("leading_dense_block_count", 0),
        "use_expert_bias": any("exp_probs_b" in name for name in header.tensors),
        "norm_topk_prob": True,  # llama.cpp has both fixed
        "routed_scaling_factor": 1.0,
    }


def gemma4(header: Header) -> Config:
    """Gemma 4: heads differ by kind of layer, the last layers share keys and may be twice as wide."""
    kinds, key = _layer_types(header, 6), "attention.head_count_kv"
    heads = {kind: {n for n, k in zip(by_layer(header, key), kinds, strict=True) if k == kind} for kind in set(kinds)}
    widths = by_layer(header, "feed_forward_length")
    dim = wanted(header, "attention.key_length_swa")
    if header.about("rope.scaling.type", "none") != "none" or header.about("rope.dimension_count_swa", dim) != dim:
        raise UnsupportedModel(f"{header.path.name} has positions unlike Gemma 4's, which kvlite does not read")
    per_layer = header.tensors.get("per_layer_token_embd.weight")
    full = heads.get("full_attention", set())
    return gemma(header) | {
        "layer_types": kinds,
        "sliding_window": wanted(header, "attention.sliding_window"),
        "num_key_value_heads": one_of(header, key, heads.get("sliding_attention", full)),
        "num_global_key_value_heads": one_of(header, key, full),
        "head_dim": dim,
        "global_head_dim": wanted(header, "attention.key_length"),
        "attention_k_eq_v": _shares_keys_and_values(header, kinds),
        "num_kv_shared_layers": header.about("attention.shared_kv_layers", 0),
        "intermediate_size": widths[0],
        "use_double_wide_mlp": widths[-1] == 2 * widths[0],
        "hidden_size_per_layer_input": header.about("embedding_length_per_layer_input", 0),
        **({"vocab_size_per_layer_input": per_layer.shape[0]} if per_layer else {}),
        "final_logit_softcapping": header.about("final_logit_softcapping"),
        **_gemma4_experts(header),
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": rotated_part(header, usually=0.25),
                "rope_theta": decimal(header.about("rope.freq_base", 1e6)),
            },
            "sliding_attention": {
                "rope_type": "default", "rope_theta": decimal(header.about("rope.freq_base_swa", 1e4)),
            },
        },
    }  # fmt: skip


def gemma4_unused(header: Header, layer: int) -> Sequence[str]:
    """The parts of a layer that have no use, as it takes the keys and values of an earlier one."""
    is_shared = layer >= header.about("block_count") - header.about("attention.shared_kv_layers", 0)
    return ("attn_k", "attn_v", "attn_k_norm") if is_shared else ()


def _gemma4_experts(header: Header) -> Config:
    if not header.about("expert_count"):
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": wanted(header, "expert_count"),
        "top_k_experts": wanted(header, "expert_used_count"),
        "moe_intermediate_size": wanted(header, "expert_feed_forward_length"),
    }


def _shares_keys_and_values(header: Header, kinds: Sequence[str]) -> bool:
    """True where the full layers that have keys of their own have no values."""
    full = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    own = [layer for layer in full if "attn_k" not in gemma4_unused(header, layer)]
    return bool(own) and not any(f"blk.{layer}.attn_v.weight" in header.tensors for layer in own)


def qwen2(header: Header) -> Config:
    """Qwen 2 and 3, SmolLM3: no layer slides."""
    return {"use_sliding_window": False}
