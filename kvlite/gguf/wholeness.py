"""The tensors of a GGUF file against what its metadata say: all layers there, of the sizes that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvlite.errors import BrokenModel
from kvlite.gguf.families import IGNORED, family_of, parts_of
from kvlite.gguf.header import Header

_OWN_TOKENS = (1, 6)
"""Kinds of tokens that are the vocabulary's own: words and bytes."""
_EITHER = (
    {"ffn_down.weight", "ffn_down_exps.weight"},
    {"attn_output.weight", "shortconv.out_proj.weight"},
    {"attn_q.weight", "attn_qkv.weight", "shortconv.in_proj.weight"},
)
"""Tensors of which every layer has one."""
_BIASES = {"qwen2": ("attn_q.bias", "attn_k.bias", "attn_v.bias")}
"""Biases that a family always has."""
_BY_LAYER = ("gemma4",)
"""Families whose heads and widths differ by layer."""


def require_whole(header: Header, config: Mapping[str, Any]) -> None:
    """Raise BrokenModel, naming a tensor, where the file's tensors are not those that its metadata describe."""
    layers, file = config["num_hidden_layers"], header.path.name
    for name in header.tensors:
        layer, *_ = parts_of(name)
        if layer is not None and layer >= layers:
            raise BrokenModel(f"{file} holds {name}, and its header counts {layers} layers; download it again")
    missing = next(_missing(header, config), None)
    if missing is not None:
        raise BrokenModel(f"{file} has no {missing}, so it is not whole; download it again")
    if header.architecture not in _BY_LAYER:
        sizes = _sizes(config)
        for name, tensor in header.tensors.items():
            _, part, suffix = parts_of(name)
            wanted = sizes.get(part)
            if suffix == "bias" and wanted is not None:
                wanted = wanted[:1]
            if wanted is not None and tensor.shape != wanted:
                held, meant = ("x".join(map(str, shape)) for shape in (tensor.shape, wanted))
                raise BrokenModel(f"{file} holds {name} of {held} where its header means {meant}; download it again")
    _require_vocabulary(header, config["vocab_size"])


def _missing(header: Header, config: Mapping[str, Any]) -> Iterator[str]:
    """The tensors that are not there: of a layer those that others of its kind have."""
    layers, skips = config["num_hidden_layers"], family_of(header).skips
    held: dict[int, set[str]] = {}
    top = set()
    for name in header.tensors:
        layer, part, suffix = parts_of(name)
        if layer is None:
            top.add(part)
        elif part not in IGNORED and part not in skips(header, layer):
            held.setdefault(layer, set()).add(f"{part}.{suffix}")
    if not top & {"output_norm", "token_embd_norm"}:
        yield "output_norm.weight"
    if len(held) < layers:
        yield f"blk.{next(layer for layer in range(layers) if layer not in held)}"
        return
    always = _BIASES.get(header.architecture, ())
    for either in _EITHER:
        yield from (f"blk.{layer}.{sorted(either)[0]}" for layer, parts in sorted(held.items()) if not parts & either)
    types = config.get("layer_types") or [""] * layers
    kinds = {layer: (types[layer], bool(skips(header, layer)), _is_mixed(held[layer])) for layer in held}
    wanted: dict[object, set[str]] = {}
    for layer, parts in held.items():
        wanted.setdefault(kinds[layer], {*always}).update(parts)
    for layer, parts in sorted(held.items()):
        yield from (f"blk.{layer}.{part}" for part in sorted(wanted[kinds[layer]] - parts))


def _is_mixed(parts: set[str]) -> bool:
    """True of a layer of experts."""
    return "ffn_gate_inp.weight" in parts


def _sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that every family has in the same form, by part."""
    hidden, heads, dim = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    queries, keys = heads * dim, config["num_key_value_heads"] * dim
    sizes: dict[str, tuple[int, ...]] = {
        "token_embd": (config["vocab_size"], hidden),
        "output": (config["vocab_size"], hidden),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (config["intermediate_size"], hidden),
        "ffn_up": (config["intermediate_size"] * (2 if config["model_type"] == "phi3" else 1), hidden),
        "ffn_down": (hidden, config["intermediate_size"]),
    }
    return sizes | dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), (hidden,))


def _require_vocabulary(header: Header, rows: int) -> None:
    """Tokens that were added may have no embedding; a prompt that has one is refused then."""
    tokens = header.metadata.get("tokenizer.ggml.tokens", ())
    types = header.metadata.get("tokenizer.ggml.token_type", ())
    own = (index for index in range(rows, len(tokens)) if index >= len(types) or types[index] in _OWN_TOKENS)
    if (first := next(own, None)) is not None:
        raise BrokenModel(
            f"{header.path.name} has {len(tokens)} tokens and embeddings for {rows}: {tokens[first]!r:.40} has none; "
            "download it again"
        )
