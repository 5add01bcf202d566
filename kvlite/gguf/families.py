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
from kvlite.gguf import config_fields, gemma_fields
from kvlite.gguf.header import Header
from kvlite.gguf.rope import Config, decimal, rope_of, wanted
from kvlite.gguf.tensor_names import (
    GEMMA4,
    GPT2,
    GPT_OSS,
    IGNORED,
    LFM2,
    LFM2_MOE,
    MINIMAX_M2,
    MIXTRAL_EXPERTS,
    NAMES,
    NORMED_AFTER,
    QWEN_EXPERTS,
    SEEING,
    STABLELM,
    STARCODER2,
)

_LAYERS, _RMS = "model.layers", ("rms_norm_eps", "attention.layer_norm_rms_epsilon")
_LAYER_NORM = "attention.layer_norm_epsilon"


@dataclass(frozen=True, slots=True)
class Family:
    """A family: its names in transformers, what a config takes besides the usual, and what llama.cpp changed.

    `names` are by part of a layer, or by part and suffix where they have no suffix in transformers. `extra` gives
    fields of config.json from the header; `skips` says of which parts a layer has no use. `pairs` says that q and k
    were permuted, `shifted_norms` that 1 was added to the weights of norms, `alternates` that the experts' gate and up
    are one matrix, row by row in turns, and that all their matrices are transposed; `transposed` are parts that
    transformers has transposed. `layers` is the place of the layers, `epsilon` what is added in norms: its field and
    the key in the header.
    """

    model_type: str
    class_name: str
    names: Mapping[str, str] = field(default_factory=lambda: NAMES)
    extra: Callable[[Header], Config] = lambda header: {}
    pairs: bool = False
    shifted_norms: bool = False
    alternates: bool = False
    skips: Callable[[Header, int], Collection[str]] = lambda header, layer: ()
    transposed: Collection[str] = ()
    layers: str = _LAYERS
    epsilon: tuple[str, str] = _RMS


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
        family.epsilon[0]: decimal(wanted(header, family.epsilon[1])),
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
        if part in IGNORED or name.startswith(SEEING) or (layer is not None and part in family.skips(header, layer)):
            continue
        place = family.names.get(f"{part}.{suffix}")
        if place is None and part in family.names and suffix in ("weight", "bias"):
            place = f"{family.names[part]}.{suffix}"
        if place is None:
            raise UnsupportedModel(
                f"{header.path.name} holds {name}, which kvlite does not know of {header.architecture}"
            )
        found[name] = place if layer is None else f"{family.layers}.{layer}.{place}"
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
_OLMO3 = Family("olmo3", "Olmo3ForCausalLM", NAMES | NORMED_AFTER, config_fields.olmo3)
_MIXTRAL = Family("mixtral", "MixtralForCausalLM", NAMES | MIXTRAL_EXPERTS, config_fields.mixtral, pairs=True)
_GEMMA_NAMES = NAMES | NORMED_AFTER | {"ffn_norm": "pre_feedforward_layernorm"}
_GEMMA4_NAMES = _GEMMA_NAMES | GEMMA4
_FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", extra=config_fields.llama, pairs=True),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", extra=config_fields.qwen2, pairs=True),
    "granite": Family("granite", "GraniteForCausalLM", extra=config_fields.granite, pairs=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", extra=config_fields.qwen2),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", NAMES | QWEN_EXPERTS, config_fields.experts),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", extra=config_fields.qwen2),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", NAMES | QWEN_EXPERTS, config_fields.experts),
    "gemma": Family("gemma", "GemmaForCausalLM", extra=gemma_fields.gemma, shifted_norms=True),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _GEMMA_NAMES, gemma_fields.gemma2, shifted_norms=True),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _GEMMA_NAMES, gemma_fields.gemma3, shifted_norms=True),
    "gemma4": Family(
        "gemma4_text", "Gemma4ForCausalLM", _GEMMA4_NAMES, gemma_fields.gemma4, skips=gemma_fields.gemma4_unused
    ),
    "gpt-oss": Family("gpt_oss", "GptOssForCausalLM", NAMES | GPT_OSS, config_fields.gpt_oss, alternates=True),
    "lfm2": Family("lfm2", "Lfm2ForCausalLM", NAMES | LFM2, config_fields.lfm2),
    "lfm2moe": Family("lfm2_moe", "Lfm2MoeForCausalLM", NAMES | LFM2 | LFM2_MOE, config_fields.lfm2_moe),
    "minimax-m2": Family("minimax_m2", "MiniMaxM2ForCausalLM", NAMES | MINIMAX_M2, config_fields.minimax_m2),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", NAMES | NORMED_AFTER),
    "gpt2": Family(
        "gpt2",
        "GPT2LMHeadModel",
        GPT2,
        config_fields.gpt2,
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
        layers="transformer.h",
        epsilon=("layer_norm_epsilon", _LAYER_NORM),
    ),
    "nemotron": Family(
        "nemotron",
        "NemotronForCausalLM",
        extra=config_fields.nemotron,
        shifted_norms=True,
        epsilon=("norm_eps", _LAYER_NORM),
    ),
    "stablelm": Family(
        "stablelm",
        "StableLmForCausalLM",
        NAMES | STABLELM,
        config_fields.stablelm,
        epsilon=("layer_norm_eps", _LAYER_NORM),
    ),
    "starcoder2": Family(
        "starcoder2",
        "Starcoder2ForCausalLM",
        NAMES | STARCODER2,
        config_fields.starcoder2,
        epsilon=("norm_epsilon", _LAYER_NORM),
    ),
    "phi3": Family(
        "phi3",
        "Phi3ForCausalLM",
        NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        config_fields.phi3,
    ),
}
