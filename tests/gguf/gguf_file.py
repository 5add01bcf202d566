"""Writes GGUF files of tiny models as llama.cpp's converter would, with names from the `gguf` library's own tables."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedConfig, PreTrainedModel

_ARCHITECTURES = {
    "gemma3_text": "gemma3", "gemma4_text": "gemma4", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
    "mixtral": "llama", "lfm2_moe": "lfm2moe", "gpt_oss": "gpt-oss", "olmo3": "olmo2", "minimax_m2": "minimax-m2",
}  # fmt: skip
_WITHOUT_A_NAME = {
    "sinks": "attn_sinks.weight",
    "layer_scalar": "layer_output_scale.weight",
    "scale": "ffn_gate_inp.scale",
    "per_expert_scale": "ffn_down_exps.scale",
    "e_score_correction_bias": "exp_probs_b.bias",
}
"""Tensors by the last part of their name in transformers, where that has no suffix."""
_PERMUTED = ("llama", "smollm3", "granite")
_SHIFTED = ("gemma", "gemma2", "gemma3", "nemotron")
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def byte_level_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """A small byte-level tokenizer with SPECIAL first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, and then the hat"] * 5, trainer)
    return tokenizer


def tokenizer_metadata(tokenizer: Tokenizer, pre: str = "gpt-2") -> dict[str, Any]:
    """The metadata of a byte-level tokenizer."""
    import json

    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def model_metadata(model: PreTrainedModel) -> dict[str, Any]:
    """The metadata of a model's shape."""
    config = copy.deepcopy(model.config)
    config.allow_global_per_layer_attribute_access = True  # of Gemma 4's head_dim
    name = _architecture(model)
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": 0.0}
    rms = getattr(config, "rms_norm_eps", None) or (getattr(config, "norm_eps", None) if "lfm2" in name else None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.key_length": head_dim,
        "attention.layer_norm_rms_epsilon": rms and float(rms),
        "attention.layer_norm_epsilon": None if rms else 1e-5,
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]) or None,
        "rope.dimension_count": int(head_dim * rope["partial_rotary_factor"])
        if "partial_rotary_factor" in rope
        else None,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "expert_count": getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None),
        "expert_used_count": getattr(config, "num_experts_per_tok", None),
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        "expert_shared_feed_forward_length": getattr(config, "shared_expert_intermediate_size", None),
        "embedding_scale": getattr(config, "embedding_multiplier", None),
        "residual_scale": getattr(config, "residual_multiplier", None),
        "attention.scale": getattr(config, "attention_multiplier", None),
        "logit_scale": getattr(config, "logits_scaling", None),
    }
    found |= rope_metadata(config) | _of_family(model)
    return {f"{name}.{key}": value for key, value in found.items() if value is not None}


def _of_family(model: PreTrainedModel) -> dict[str, Any]:
    """The metadata that the converter of one family writes."""
    config = model.config
    if config.model_type == "gpt_oss":
        return {"expert_feed_forward_length": config.intermediate_size}
    if config.model_type == "gpt2":
        width = config.n_inner or 4 * config.n_embd
        return {"feed_forward_length": width, "attention.head_count_kv": None, "attention.key_length": None}
    if config.model_type == "minimax_m2":
        return {"expert_feed_forward_length": config.intermediate_size, "expert_gating_func": 2}
    if config.model_type == "olmo3":
        return {"attention.sliding_window_pattern": _slides(config)}
    if config.model_type in ("lfm2", "lfm2_moe"):
        kv = config.num_key_value_heads
        is_dense = config.model_type == "lfm2"
        return {
            "leading_dense_block_count": None if is_dense else config.num_dense_layers,
            "attention.key_length": None,
            "attention.head_count_kv": [0 if kind == "conv" else kv for kind in config.layer_types],
            "feed_forward_length": model.model.layers[0].feed_forward.w1.out_features,
            "shortconv.l_cache": config.conv_L_cache,
        }
    if config.model_type != "gemma4_text":
        return {}
    attentions = [layer.self_attn for layer in model.model.layers]
    kinds = dict(zip(config.layer_types, attentions, strict=True))
    kv = {kind: one.num_key_value_groups for kind, one in kinds.items()}
    return {
        "attention.sliding_window_pattern": _slides(config),
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "attention.key_length": kinds["full_attention"].head_dim,
        "attention.key_length_swa": kinds["sliding_attention"].head_dim,
        "attention.head_count_kv": [config.num_attention_heads // kv[kind] for kind in config.layer_types],
        "feed_forward_length": [layer.mlp.gate_proj.out_features for layer in model.model.layers],
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input or 0,
        "rope.freq_base_swa": float(config.rope_parameters["sliding_attention"]["rope_theta"]),
        "expert_used_count": config.top_k_experts,
    }


def _slides(config: PreTrainedConfig) -> list[bool]:
    return [kind == "sliding_attention" for kind in config.layer_types]


def rope_metadata(config: PreTrainedConfig) -> dict[str, Any]:
    """The metadata of scaled positions besides the tensors of `rope_tensors`."""
    if getattr(config, "rope_parameters", None) is None:
        return {}
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    kind, original = rope["rope_type"], rope.get("original_max_position_embeddings")
    if config.model_type == "phi3":
        found = {"rope.scaling.original_context_length": original}
        if kind == "longrope":
            scale = config.max_position_embeddings / original
            found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
        return found
    if kind not in ("linear", "yarn"):
        return {}
    return {
        "rope.scaling.type": kind,
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": original,
        "rope.scaling.yarn_attn_factor": rope.get("attention_factor"),
        "rope.scaling.yarn_beta_fast": rope.get("beta_fast"),
        "rope.scaling.yarn_beta_slow": rope.get("beta_slow"),
    }


def rope_tensors(config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """The numbers that frequencies are divided by, as convert_hf_to_gguf.py computes it."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{name}.weight": np.float32(rope[f"{name}_factor"]) for name in ("long", "short")}
    if config.model_type == "gemma4_text":
        full, dim = rope["full_attention"], _full_head_dim(config)
        turning = int(dim * full["partial_rotary_factor"] / 2)
        return {"rope_freqs.weight": np.float32([1.0] * turning + [1e30] * (dim // 2 - turning))}
    if rope.get("rope_type") != "llama3":
        return {}
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for freq in 1.0 / (
        rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    ):
        wavelen = 2 * math.pi / freq
        if wavelen < original / high:
            factors.append(1)
        elif wavelen > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelen - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": torch.tensor(factors, dtype=torch.float32).numpy()}


def _full_head_dim(config: PreTrainedConfig) -> int:
    full = next(layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention")
    dim: int = config.per_layer_config[full].head_dim
    return dim


def random_blocks(kind: str, rows: int, inputs: int, factor: float = 1.0) -> np.ndarray:
    """Blocks of random bits whose scales are numbers, times a factor."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(0).integers(0, 256, (rows, inputs // elements, size), dtype=np.uint8)
    numbers = (factor * np.array([0.011, -0.07])).astype(np.float16).view(np.uint8)
    if kind == "Q6_K":
        blocks[..., -2:] = numbers[:2]
    else:
        count = 4 if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else 2
        blocks[..., :count] = numbers[:count]
    return blocks.reshape(rows, -1)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    architecture: str,
    kind: str | Mapping[str, str] = "F32",
) -> Path:
    """Write a file, without the metadata that is None; matrices become blocks of `kind`, vectors stay F32.

    Kinds may be given by the part of a layer; matrices of those that the gguf library does not write become random.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in tensors.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        asked = kind if isinstance(kind, str) else kind.get(part, "F32")
        quantised = gguf.GGMLQuantizationType[asked if values.ndim > 1 else "F32"]
        try:
            blocks = gguf.quants.quantize(values, quantised)
        except NotImplementedError:
            blocks = random_blocks(quantised.name, *values.shape, factor=0.005)
        writer.add_tensor(name, blocks, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path: Path, model: PreTrainedModel, kind: str | Mapping[str, str] = "F32", **metadata: Any) -> Path:
    """Write a tiny model with a byte-level tokenizer of its vocabulary's size, or one token for each id."""
    about = model_metadata(model) | tokenizer_metadata(byte_level_tokenizer(model.config.vocab_size)) | metadata
    return write_gguf(path, about, converted(model), _architecture(model), kind)


def converted(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The model's tensors under llama.cpp's names and in its order."""
    architecture, config = _architecture(model), model.config
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    for name, tensor in _checkpoint(model).items():
        place = _WITHOUT_A_NAME.get(name.rpartition(".")[2])
        place = place and f"blk.{name.split('.')[2]}.{place}"
        place = place or names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert place is not None, name
        values = tensor.float()
        if architecture in _PERMUTED and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        if architecture in _SHIFTED and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "gpt2" and (".c_" in name and values.ndim == 2):
            values = values.T.contiguous()
        if "shared_expert_gate" in name:
            values = values[0]
        if "conv.conv" in name:
            values = values.squeeze(1)
        found[place] = values.numpy()
    return found | rope_tensors(config)


def _checkpoint(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's tensors, experts as one stack for each of the three maps."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        if "layernorm.norms." in name:
            stack, _ = name.split(".norms.")
            heads = found.get(f"{stack}.weight", tensor[None][:0])
            found[f"{stack}.weight"] = torch.cat([heads, tensor[None]])
        elif model.config.model_type == "gpt_oss" and ".experts." in name:
            found |= _alternating(name, tensor)
        elif model.config.model_type == "gemma4_text" and ".experts." in name:
            found[f"{name}.weight"] = tensor
        elif name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            found[f"{stem}gate_proj.weight"], found[f"{stem}up_proj.weight"] = tensor.chunk(2, 1)
        elif name.endswith("experts.down_proj"):
            found[f"{name}.weight"] = tensor
        else:
            found[f"{name}.bias" if name.endswith(".expert_bias") else name] = tensor
    if model.config.model_type == "mixtral":
        changed = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
        found = {_mixtral(name, changed): tensor for name, tensor in found.items()}
    return found


def _alternating(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Experts whose gate and up take turns, as one stack for each map."""
    stem, suffix = name.removesuffix("_bias"), "bias" if name.endswith("_bias") else "weight"
    rows = tensor if suffix == "bias" else tensor.transpose(1, 2)
    if stem.endswith("down_proj"):
        return {f"{stem}.{suffix}": rows}
    stem = stem.removesuffix("gate_up_proj")
    return {f"{stem}gate_proj.{suffix}": rows[:, ::2], f"{stem}up_proj.{suffix}": rows[:, 1::2]}


def _mixtral(name: str, changed: Mapping[str, str]) -> str:
    name = name.replace(".mlp.", ".block_sparse_moe.")
    for ours, theirs in changed.items():
        name = name.replace(f"experts.{ours}", f"experts.{theirs}")
    return name


def _architecture(model: PreTrainedModel) -> str:
    return _ARCHITECTURES.get(model.config.model_type, model.config.model_type)
