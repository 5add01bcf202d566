"""Families that GGUF files are read for: names of tensors, and config.json as transformers would have it.

llama.cpp renames tensors, turns the rotary halves of some families' q and k into pairs, and adds 1 to Gemma's norms;
all of it is undone here (convert_hf_to_gguf.py of ggml-org/llama.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.gguf.header import Header
from kvlite.gguf.rope import Config, decimal, rope_of, wanted

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMED_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
_MIXTRAL_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}
IGNORED = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors without a parameter of their own: the config says the same."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family: its names in transformers, what a config takes besides the usual, and what llama.cpp changed.

    `extra` gives fields of config.json from the header. `pairs` says that q and k were permuted, `shifted_norms` that
    1 was added to the weights of norms.
    """

    model_type: str
    class_name: str
    names: Mapping[str, str] = field(default_factory=lambda: _NAMES)
    extra: Callable[[Header], Config] = lambda header: {}
    pairs: bool = False
    shifted_norms: bool = False


def family_of(header: Header) -> Family:
    """The family of a file. Raises UnsupportedModel, naming those that are read, for any other."""
    family = _FAMILIES.get(header.architecture)
    if family is None:
        raise UnsupportedModel(
            f"{header.path.name} is of the family {header.architecture or 'none'!r}, which kvlite does not read from "
            f"GGUF ({', '.join(sorted(_FAMILIES))}); use the model's safetensors repository"
        )
    if header.architecture == "llama" and header.about("expert_count"):
        return _MIXTRAL
    return family


def config_of(header: Header) -> Config:
    """The config.json of a file's model, as transformers would write it.

    Raises BrokenModel where the file lacks what every model has, UnsupportedModel for families that are not read, and
    for layers and positions unlike those of their family in transformers.
    """
    family = family_of(header)
    heads = wanted(header, "attention.head_count")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise BrokenModel(f"{header.path.name} has no token_embd.weight; it is not a whole model")
    hidden = wanted(header, "embedding_length")
    config: Config = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "dtype": _dtype(header),
        "hidden_size": hidden,
        "intermediate_size": wanted(header, "feed_forward_length"),
        "num_hidden_layers": wanted(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": wanted(header, "attention.head_count_kv", heads),
        "head_dim": header.about("attention.key_length", hidden // heads),
        "max_position_embeddings": wanted(header, "context_length"),
        "rms_norm_eps": decimal(wanted(header, "attention.layer_norm_rms_epsilon")),
        "rope_parameters": rope_of(header),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return config | family.extra(header)


def weight_names(header: Header) -> dict[str, str]:
    """Names in transformers by names in the file; `*` stands for the number of an expert.

    Raises UnsupportedModel for a tensor that the family has no place for.
    """
    family, found = family_of(header), {}
    for name in header.tensors:
        stem, _, suffix = name.rpartition(".")
        *block, part = stem.split(".", 2)
        if part in IGNORED or stem in IGNORED:
            continue
        place = family.names.get(part)
        if place is None or suffix not in ("weight", "bias") or len(block) not in (0, 2):
            raise UnsupportedModel(
                f"{header.path.name} holds {name}, which kvlite does not know of {header.architecture}"
            )
        found[name] = f"{f'model.layers.{block[1]}.' if block else ''}{place}.{suffix}"
    return found


def _dtype(header: Header) -> str:
    """The dtype to compute in: float32 where most bytes are, else bfloat16, as Gemma overflows float16."""
    return "float32" if next(iter(header.by_type), "F32") == "F32" else "bfloat16"


def _has(header: Header, name: str) -> bool:
    return f"blk.0.{name}" in header.tensors


def _llama(header: Header) -> Config:
    return {"attention_bias": _has(header, "attn_q.bias"), "mlp_bias": _has(header, "ffn_up.bias")}


def _mixtral(header: Header) -> Config:
    return {
        "num_local_experts": header.about("expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "sliding_window": None,
    }


def _experts(header: Header) -> Config:
    shared = header.about("expert_shared_feed_forward_length")
    return {
        "num_experts": wanted(header, "expert_count"),
        "num_experts_per_tok": wanted(header, "expert_used_count"),
        "moe_intermediate_size": wanted(header, "expert_feed_forward_length"),
        "norm_topk_prob": header.architecture == "qwen3moe",  # llama.cpp has it fixed for each
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    } | ({"shared_expert_intermediate_size": shared} if shared else {})


def _gemma(header: Header) -> Config:
    return {"hidden_activation": "gelu_pytorch_tanh"}


def _query_scalar(header: Header, largest: int) -> int:
    """The number whose root divides logits: the head dim, but for the largest of the family hidden / heads."""
    is_largest = header.about("block_count") == largest
    heads, hidden = wanted(header, "attention.head_count"), wanted(header, "embedding_length")
    return int(hidden // heads if is_largest else header.about("attention.key_length"))


def _gemma2(header: Header) -> Config:
    return _gemma(header) | {
        "query_pre_attn_scalar": _query_scalar(header, 46),
        "attn_logit_softcapping": header.about("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.about("final_logit_softcapping", 30.0),
        "sliding_window": header.about("attention.sliding_window", 4096),
        "layer_types": _layer_types(header, 2),
    }


def _gemma3(header: Header) -> Config:
    local = header.about("rope.freq_base_swa", 10000.0)
    window = header.about("attention.sliding_window")  # without one every layer is full
    return _gemma(header) | {
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


def _phi3(header: Header) -> Config:
    head_dim = wanted(header, "embedding_length") // wanted(header, "attention.head_count")
    rope = rope_of(header) | {"partial_rotary_factor": header.about("rope.dimension_count", head_dim) / head_dim}
    original = rope.get("original_max_position_embeddings", header.about("context_length"))
    return {
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": header.about("attention.sliding_window") or None,
    }


def _granite(header: Header) -> Config:
    return _llama(header) | {
        "embedding_multiplier": decimal(header.about("embedding_scale", 1.0)),
        "residual_multiplier": decimal(header.about("residual_scale", 1.0)),
        "attention_multiplier": decimal(wanted(header, "attention.scale")),
        "logits_scaling": decimal(header.about("logit_scale", 1.0)),
    }


def _olmo2(header: Header) -> Config:
    if header.about("attention.sliding_window"):
        raise UnsupportedModel(f"{header.path.name} is an OLMo 3, which kvlite does not read from GGUF")
    return {}


def _qwen2(header: Header) -> Config:
    return {"use_sliding_window": False}


_MIXTRAL = Family("mixtral", "MixtralForCausalLM", _NAMES | _MIXTRAL_EXPERTS, _mixtral, pairs=True)
_GEMMA_NAMES = _NAMES | _NORMED_AFTER | {"ffn_norm": "pre_feedforward_layernorm"}
_FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", extra=_llama, pairs=True),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", extra=_qwen2, pairs=True),
    "granite": Family("granite", "GraniteForCausalLM", extra=_granite, pairs=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", extra=_qwen2),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", _NAMES | _QWEN_EXPERTS, _experts),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", extra=_qwen2),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _NAMES | _QWEN_EXPERTS, _experts),
    "gemma": Family("gemma", "GemmaForCausalLM", extra=_gemma, shifted_norms=True),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _GEMMA_NAMES, _gemma2, shifted_norms=True),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _GEMMA_NAMES, _gemma3, shifted_norms=True),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _NAMES | _NORMED_AFTER, _olmo2),
    "phi3": Family(
        "phi3", "Phi3ForCausalLM", _NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}, _phi3
    ),
}
