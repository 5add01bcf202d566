"""Rules for the attention of each layer where config.json lists no `layer_types`; one small rule per pattern."""

from __future__ import annotations

from collections.abc import Callable

from kvlite.memory.fields import Fields

FULL, SLIDING, LINEAR, CONV, HYBRID = (
    "full_attention",
    "sliding_attention",
    "linear_attention",
    "conv",
    "hybrid",
)

Layout = Callable[[Fields, int], tuple[str, ...]]
"""(config, number of layers) -> the type of each layer, in transformers' words."""


def every_layer(kind: str) -> Layout:
    """All layers alike."""
    return lambda config, layers: (kind,) * layers


def full_every(period: int, others: str, key: str | None = None) -> Layout:
    """Each `period`-th layer is full, counted from 1; config.json may name another period under `key`."""

    def layout(config: Fields, layers: int) -> tuple[str, ...]:
        stride = (config.optional_count(key) if key else None) or period
        return tuple(FULL if (layer + 1) % stride == 0 else others for layer in range(layers))

    return layout


def sliding_from(default_start: int) -> Layout:
    """Layers from `max_window_layers` on slide (Qwen2, Qwen3, dots.llm1)."""

    def layout(config: Fields, layers: int) -> tuple[str, ...]:
        start = config.count("max_window_layers", default=default_start)
        return tuple(SLIDING if layer >= start else FULL for layer in range(layers))

    return layout


def alternate_below(default_end: int) -> Layout:
    """Even layers below `max_window_layers` slide (Qwen2-MoE)."""

    def layout(config: Fields, layers: int) -> tuple[str, ...]:
        end = config.count("max_window_layers", default=default_end)
        return tuple(SLIDING if layer % 2 == 0 and layer < end else FULL for layer in range(layers))

    return layout


def full_first_of(period: int) -> Layout:
    """The first layer of each `period` is full (CWM)."""
    return lambda config, layers: tuple(SLIDING if layer % period else FULL for layer in range(layers))


def sliding_without_rope(config: Fields, layers: int) -> tuple[str, ...]:
    """Layers without rotary positions slide; `no_rope_layers` holds 1 for a layer that rotates (SmolLM3)."""
    interval = config.count("no_rope_layer_interval", default=4)
    rotates = config.whole_numbers("no_rope_layers")
    if rotates is None:
        rotates = tuple((layer + 1) % interval for layer in range(layers))
    return tuple(FULL if rotates[layer : layer + 1] != (0,) else SLIDING for layer in range(layers))


def full_at(key: str, others: str, all_full: bool) -> Layout:
    """The layers that config.json lists under `key` are full; without a list all are, or none."""

    def layout(config: Fields, layers: int) -> tuple[str, ...]:
        listed = config.whole_numbers(key)
        if listed is None:
            return (FULL if all_full else others,) * layers
        return tuple(FULL if layer in listed else others for layer in range(layers))

    return layout
