"""Fields of config.json that a family takes besides the usual ones, from a GGUF header.

llama.cpp has some fixed in code where transformers has a field, and lists by layer what transformers has once.
"""

from __future__ import annotations

from kvlite.errors import UnsupportedModel
from kvlite.gguf.header import Header
from kvlite.gguf.rope import Config, by_layer, decimal, one_of, rope_of, wanted


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


def layer_types(header: Header, period: int | None) -> list[str]:
    """Types of layers: as the file lists them, or each `period`-th is full (None: all) and the others have a window."""
    layers = range(1, header.about("block_count") + 1)
    slides = [False for _ in layers]
    if period is not None:
        given = header.about("attention.sliding_window_pattern", period)
        slides = list(given) if isinstance(given, (list, tuple)) else [bool(not given or n % given) for n in layers]
    return ["sliding_attention" if one else "full_attention" for one in slides]


def _partly_rotated(header: Header) -> Config:
    """Rotary parameters of heads of which the first elements rotate."""
    hidden, heads = wanted(header, "embedding_length"), wanted(header, "attention.head_count")
    head_dim = header.about("attention.key_length", hidden // heads)
    return rope_of(header) | {"partial_rotary_factor": header.about("rope.dimension_count", head_dim) / head_dim}


def phi3(header: Header) -> Config:
    """Phi-3: part of a head rotates, and texts are long or short."""
    rope = _partly_rotated(header)
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
        "layer_types": layer_types(header, 4),
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
        "layer_types": layer_types(header, 2),
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


def _require_sigmoid(header: Header, family: str) -> None:
    """Refuse experts that are not chosen by a sigmoid, which the family has fixed in transformers."""
    function = header.about("expert_gating_func", 2)
    if function != 2:
        raise UnsupportedModel(f"{header.path.name} gates experts by function {function}; {family}'s is the sigmoid, 2")


def lfm2_moe(header: Header) -> Config:
    """LFM2's mixtures: the first layers are dense, and a bias takes part in the choice of experts."""
    _require_sigmoid(header, "LFM2")
    return lfm2(header) | {
        "num_experts": wanted(header, "expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "moe_intermediate_size": wanted(header, "expert_feed_forward_length"),
        "num_dense_layers": header.about("leading_dense_block_count", 0),
        "use_expert_bias": any("exp_probs_b" in name for name in header.tensors),
        "norm_topk_prob": True,  # llama.cpp has both fixed
        "routed_scaling_factor": 1.0,
    }


def qwen2(header: Header) -> Config:
    """Qwen 2 and 3, SmolLM3: no layer slides."""
    return {"use_sliding_window": False}


def minimax_m2(header: Header) -> Config:
    """MiniMax-M2: all layers are mixtures, and a bias takes part in the choice of experts."""
    _require_sigmoid(header, "MiniMax-M2")
    return {
        "num_local_experts": wanted(header, "expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "intermediate_size": wanted(header, "expert_feed_forward_length", header.about("feed_forward_length")),
        "rope_parameters": _partly_rotated(header),
    }


def gpt2(header: Header) -> Config:
    """GPT-2: positions are learned."""
    return {"rope_parameters": None, "n_inner": wanted(header, "feed_forward_length")}


def stablelm(header: Header) -> Config:
    """StableLM: layers without a second norm do attention and MLP side by side; norms of heads where there are any."""
    return {
        "rope_parameters": _partly_rotated(header),
        "use_qkv_bias": _has(header, "attn_q.bias"),
        "qk_layernorm": _has(header, "attn_q_norm.weight"),
        "use_parallel_residual": not _has(header, "ffn_norm.weight"),
    }


def starcoder2(header: Header) -> Config:
    """StarCoder2: biases are where the file has them, and no layer has a window, as in llama.cpp."""
    return {"use_bias": _has(header, "attn_q.bias"), "sliding_window": None}


def nemotron(header: Header) -> Config:
    """Nemotron: biases are where the file has them, and a part of each head rotates."""
    return llama(header) | {"rope_parameters": _partly_rotated(header)}
