"""Families that GGUF files are read for: names of tensors, and config.json as transformers would have it.

llama.cpp renames tensors, turns the rotary halves of some families' q and k into pairs, and adds 1 to Gemma's norms;
all of it is undone here (convert_hf_to_gguf.py of ggml-org/llama.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.gguf import config_fields
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
_GPT_OSS = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    **dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight"), "mlp.experts.gate_up_proj"),
    **dict.fromkeys(("ffn_gate_exps.bias", "ffn_up_exps.bias"), "mlp.experts.gate_up_proj_bias"),
    "ffn_down_exps.weight": "mlp.experts.down_proj",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}
_GEMMA4 = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "layer_output_scale.weight": "layer_scalar",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    **dict.fromkeys(("ffn_gate_up_exps.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight"), "experts.gate_up_proj"),
    "ffn_down_exps.weight": "experts.down_proj",
}
_LFM2 = {
    **dict.fromkeys(("token_embd_norm", "output_norm"), "model.embedding_norm"),
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}
_LFM2_MOE = {
    "ffn_gate_inp": "feed_forward.gate",
    **dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight"), "feed_forward.experts.gate_up_proj"),
    "ffn_down_exps.weight": "feed_forward.experts.down_proj",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
IGNORED = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors without a parameter of their own: the config says the same."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family: its names in transformers, what a config takes besides the usual, and what llama.cpp changed.

    `names` are by part of a layer, or by part and suffix where they have no suffix in transformers. `extra` gives
    fields of config.json from the header; `skips` says of which parts a layer has no use. `pairs` says that q and k
    were permuted, `shifted_norms` that 1 was added to the weights of norms, `alternates` that the experts' gate and up
    are one matrix, row by row in turns, and that all their matrices are transposed.
    """

    model_type: str
    class_name: str
    names: Mapping[str, str] = field(default_factory=lambda: _NAMES)
    extra: Callable[[Header], Config] = lambda header: {}
    pairs: bool = False
    shifted_norms: bool = False
    alternates: bool = False
    skips: Callable[[Header, int], Collection[str]] = lambda header, layer: ()


def family_of(header: Header) -> Family:
    """The family of a file. Raises UnsupportedModel, naming those that are read, for any other."""
    family = _FAMILIES.get(header.architecture)
    if header.architecture in _NOT_RUN:
        raise UnsupportedModel(
            f"{header.path.name} is of the family {header.architecture!r}, which kvlite does not run: "
            f"{_NOT_RUN[header.architecture]}; choose another model"
        )
    if family is None:
        raise UnsupportedModel(
            f"{header.path.name} is of the family {header.architecture or 'none'!r}, which kvlite does not read from "
            f"GGUF ({', '.join(sorted(_FAMILIES))}); use the model's safetensors repository"
        )
    if header.architecture == "llama" and header.about("expert_count"):
        return _MIXTRAL
    if header.architecture == "olmo2" and header.about("attention.sliding_window"):
        return _OLMO3
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
        "num_hidden_layers": wanted(header, "block_count"),
        "num_attention_heads": heads,
        "head_dim": header.about("attention.key_length", hidden // heads),
        "max_position_embeddings": wanted(header, "context_length"),
        "rms_norm_eps": decimal(wanted(header, "attention.layer_norm_rms_epsilon")),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    } | family.extra(header)
    usual: dict[str, Callable[[], Any]] = {  # not read where the family has its own way
        "intermediate_size": lambda: wanted(header, "feed_forward_length"),
        "num_key_value_heads": lambda: wanted(header, "attention.head_count_kv", heads),
        "rope_parameters": lambda: rope_of(header),
    }
    return config | {name: read() for name, read in usual.items() if name not in config}


def weight_names(header: Header) -> dict[str, str]:
    """Names in transformers by names in the file; `*` stands for the number of an expert.

    Raises UnsupportedModel for a tensor that the family has no place for.
    """
    family, found = family_of(header), {}
    for name in header.tensors:
        layer, part, suffix = parts_of(name)
        if part in IGNORED or (layer is not None and part in family.skips(header, layer)):
            continue
        place = family.names.get(f"{part}.{suffix}")
        if place is None and part in family.names and suffix in ("weight", "bias"):
            place = f"{family.names[part]}.{suffix}"
        if place is None:
            raise UnsupportedModel(
                f"{header.path.name} holds {name}, which kvlite does not know of {header.architecture}"
            )
        found[name] = place if layer is None else f"model.layers.{layer}.{place}"
    return found


def parts_of(name: str) -> tuple[int | None, str, str]:
    """The layer, the part and the suffix of a tensor's name: `blk.3.attn_q.weight` is 3, `attn_q`, `weight`."""
    stem, _, suffix = name.rpartition(".")
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
    return (None, stem, suffix) if found is None else (int(found[1]), found[2], suffix)


def _dtype(header: Header) -> str:
    """The dtype to compute in: float32 where most bytes are, else bfloat16, as Gemma overflows float16."""
    return "float32" if next(iter(header.by_type), "F32") == "F32" else "bfloat16"


_NOT_RUN = {
    **dict.fromkeys(("falcon", "bloom", "gptj", "mpt"), "its code leaves no place for a bounded cache"),
    **dict.fromkeys(("mamba", "mamba2", "rwkv6", "rwkv7"), "it has no keys and values to bound"),
    **dict.fromkeys(("t5", "t5encoder", "bert", "nomic-bert"), "it is no causal language model"),
    "deci": "some of its layers have no attention, and others differ in width",
    "llama4": "its attention goes by chunks",
}
_OLMO3 = Family("olmo3", "Olmo3ForCausalLM", _NAMES | _NORMED_AFTER, config_fields.olmo3)
_MIXTRAL = Family("mixtral", "MixtralForCausalLM", _NAMES | _MIXTRAL_EXPERTS, config_fields.mixtral, pairs=True)
_GEMMA_NAMES = _NAMES | _NORMED_AFTER | {"ffn_norm": "pre_feedforward_layernorm"}
_GEMMA4_NAMES = _GEMMA_NAMES | _GEMMA4
_FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", extra=config_fields.llama, pairs=True),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", extra=config_fields.qwen2, pairs=True),
    "granite": Family("granite", "GraniteForCausalLM", extra=config_fields.granite, pairs=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", extra=config_fields.qwen2),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", _NAMES | _QWEN_EXPERTS, config_fields.experts),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", extra=config_fields.qwen2),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _NAMES | _QWEN_EXPERTS, config_fields.experts),
    "gemma": Family("gemma", "GemmaForCausalLM", extra=config_fields.gemma, shifted_norms=True),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _GEMMA_NAMES, config_fields.gemma2, shifted_norms=True),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _GEMMA_NAMES, config_fields.gemma3, shifted_norms=True),
    "gemma4": Family(
        "gemma4_text", "Gemma4ForCausalLM", _GEMMA4_NAMES, config_fields.gemma4, skips=config_fields.gemma4_unused
    ),
    "gpt-oss": Family("gpt_oss", "GptOssForCausalLM", _NAMES | _GPT_OSS, config_fields.gpt_oss, alternates=True),
    "lfm2": Family("lfm2", "Lfm2ForCausalLM", _NAMES | _LFM2, config_fields.lfm2),
    "lfm2moe": Family("lfm2_moe", "Lfm2MoeForCausalLM", _NAMES | _LFM2 | _LFM2_MOE, config_fields.lfm2_moe),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _NAMES | _NORMED_AFTER),
    "phi3": Family(
        "phi3",
        "Phi3ForCausalLM",
        _NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        config_fields.phi3,
    ),
}
