"""The types of a model's layers, as families list them in config.json or leave them to transformers' class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvlite.errors import BrokenModel
from kvlite.memory.fields import Fields

FULL, SLIDING, LINEAR, CONV, HYBRID = "full_attention", "sliding_attention", "linear_attention", "conv", "hybrid"
MLP, MOE = "mlp", "moe"
"""The types of layers, in transformers' words; the last two keep nothing."""

IsFull = Callable[[Fields, int], bool]
"""(config, index of a layer) -> True where the layer has full attention."""

Types = Callable[[Fields], Sequence[str] | None]
"""config -> the type of each layer, where a family lists them in its own way; None where it does not."""


def every(period: int, key: str | None = None) -> IsFull:
    """Each `period`-th layer, counted from 1; config.json may name another period under `key`."""
    return lambda config, layer: (layer + 1) % ((config.optional_count(key) if key else None) or period) == 0


def first_of(period: int) -> IsFull:
    """The first of each `period` layers."""
    return lambda config, layer: layer % period == 0


def or_last(is_full: IsFull) -> IsFull:
    """Those layers, and the last one."""
    return lambda config, layer: is_full(config, layer) or layer == config.count("num_hidden_layers") - 1


def behind_dense(config: Fields, layer: int) -> bool:
    """Each `sliding_window_pattern`-th layer behind the dense ones in front, which have a period of their own."""
    dense = config.optional_count("first_k_dense_replace") if config.values.get("first_k_dense_replace") else 0
    key, default = ("sliding_window_pattern", 4)
    if layer < (dense or 0):
        key, default, dense = "prefix_dense_sliding_window_pattern", 1, 0
    return (layer - (dense or 0) + 1) % config.count(key, default=default) == 0


def below_window_layers(default: int) -> IsFull:
    """The layers before the `max_window_layers`-th."""
    return lambda config, layer: layer < config.count("max_window_layers", default=default)


def odd_or_from_window_layers(default: int) -> IsFull:
    """Each second layer, and all from the `max_window_layers`-th on."""
    return lambda config, layer: layer % 2 == 1 or layer >= config.count("max_window_layers", default=default)


def with_rope(config: Fields, layer: int) -> bool:
    """Layers with rotary positions: `no_rope_layers` holds 1 for each of them."""
    rotates = config.whole_numbers("no_rope_layers")
    if rotates is None:
        return (layer + 1) % config.count("no_rope_layer_interval", default=4) != 0
    return layer >= len(rotates) or rotates[layer] != 0


def listed(key: str, *, otherwise: bool) -> IsFull:
    """The layers that config.json lists under `key`; without a list all or none."""

    def is_full(config: Fields, layer: int) -> bool:
        listed = config.whole_numbers(key)
        return otherwise if listed is None else layer in listed

    return is_full


def patterned(config: Fields) -> Sequence[str] | None:
    """Nemotron-H: a list of its own, else a letter for each layer."""
    listed = config.names("layers_block_type") or config.names("layer_types")
    if listed is not None:
        return listed
    pattern = config.text("hybrid_override_pattern")
    letters = {"M": LINEAR, "*": FULL, "-": MLP, "E": MOE}
    if pattern is None:
        return (LINEAR, MOE, FULL, MLP)
    if not pattern or set(pattern) - set(letters):
        raise BrokenModel(f"config.json: hybrid_override_pattern is {pattern!r:.80}; expected M, *, - and E")
    return [letters[letter] for letter in pattern]


def convolutions_first(config: Fields) -> Sequence[str]:
    """LFM3: of four layers one is full and one slides, but the very first; the others are convolutions."""
    layers = range(config.count("num_hidden_layers", default=24))
    return [FULL if layer % 4 == 2 else SLIDING if layer % 4 == 0 and layer else CONV for layer in layers]
