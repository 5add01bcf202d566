"""The tensors of a GGUF file against what its metadata say: all layers there, of the sizes that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from kvlite.errors import BrokenModel
from kvlite.gguf.families import family_of, parts_of
from kvlite.gguf.header import Header
from kvlite.gguf.shapes import BY_LAYER, layer_shapes, top_names, top_shapes
from kvlite.gguf.tensor_names import IGNORED

_OWN_TOKENS = (1, 6)
"""Kinds of tokens that are the vocabulary's own: words and bytes."""


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
    _require_shapes(header, config)
    _require_vocabulary(header, config["vocab_size"])


def _missing(header: Header, config: Mapping[str, Any]) -> Iterator[str]:
    """The tensors that are not there: of a layer those that its family or others of its kind have."""
    layers, skips = config["num_hidden_layers"], family_of(header).skips
    held: dict[int, set[str]] = {}
    top: set[str] = set()
    for name in header.tensors:
        layer, part, suffix = parts_of(name)
        if layer is None:
            top.add(f"{part}.{suffix}")
        elif part not in IGNORED and part not in skips(header, layer):
            held.setdefault(layer, set()).add(f"{part}.{suffix}")
    if "token_embd_norm.weight" in top:  # as LFM2 calls its last norm
        top.add("output_norm.weight")
    yield from sorted(top_names(config) - top)
    if len(held) < layers:
        yield f"blk.{next(layer for layer in range(layers) if layer not in held)}"
        return
    types = config.get("layer_types") or [""] * layers
    kinds = {layer: (types[layer], bool(skips(header, layer)), _is_mixed(held[layer])) for layer in held}
    wanted: dict[object, set[str]] = {}
    for layer, parts in held.items():
        wanted.setdefault(kinds[layer], set()).update(parts)
    for layer, parts in sorted(held.items()):
        always = {part for part in layer_shapes(config, layer) if part.partition(".")[0] not in skips(header, layer)}
        yield from (f"blk.{layer}.{part}" for part in sorted((wanted[kinds[layer]] | always) - parts))


def _is_mixed(parts: set[str]) -> bool:
    """True of a layer of experts."""
    return "ffn_gate_inp.weight" in parts


def _require_shapes(header: Header, config: Mapping[str, Any]) -> None:
    """Refuse tensors of another shape, and biases that the model would be run without."""
    file, top, of_layer = header.path.name, top_shapes(config), cache(lambda layer: layer_shapes(config, layer))
    for name, tensor in header.tensors.items():
        layer, part, suffix = parts_of(name)
        if layer is not None and config["model_type"] in BY_LAYER:
            continue
        wanted = (top if layer is None else of_layer(layer)).get(f"{part}.{suffix}")
        if wanted is None and layer is not None and suffix == "bias":
            raise BrokenModel(f"{file} holds {name}, which its family has no place for; get another conversion")
        if wanted is not None and tensor.shape != wanted:
            held, meant = ("x".join(map(str, shape)) for shape in (tensor.shape, wanted))
            raise BrokenModel(f"{file} holds {name} of {held} where its header means {meant}; download it again")


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
