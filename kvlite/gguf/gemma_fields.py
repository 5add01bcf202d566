"""Fields of config.json that the Gemma families take besides the usual ones, from a GGUF header."""

from __future__ import annotations

from collections.abc import Sequence

from kvlite.errors import UnsupportedModel
from kvlite.gguf.config_fields import layer_types
from kvlite.gguf.header import Header
from kvlite.gguf.rope import Config, by_layer, decimal, one_of, rope_of, rotated_part, wanted


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
        "layer_types": layer_types(header, 2),
    }


def gemma3(header: Header) -> Config:
    """Gemma 3: five layers of six slide, with rotations of their own."""
    local = header.about("rope.freq_base_swa", 10000.0)
    window = header.about("attention.sliding_window")  # without one every layer is full
    return gemma(header) | {
        "query_pre_attn_scalar": _query_scalar(header, 62),
        "final_logit_softcapping": header.about("final_logit_softcapping") or None,
        **({"sliding_window": window} if window else {}),
        "layer_types": layer_types(header, 6 if window else None),
        "rope_parameters": {
            "full_attention": rope_of(header) | {"rope_theta": decimal(header.about("rope.freq_base", 1e6))},
            "sliding_attention": {"rope_type": "default", "rope_theta": decimal(local)},
        },
    }


def gemma4(header: Header) -> Config:
    """Gemma 4: heads differ by kind of layer, the last layers share keys and may be twice as wide."""
    kinds, key = layer_types(header, 6), "attention.head_count_kv"
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
