"""Shares of a cache's slots for its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvlite.memory.shape import LayerShape

LayerRule = Callable[[int, int, int, int], int]
"""Slots of full-attention layer number `depth` of `layers`: (slots on average, most, depth, layers) -> slots.

Never fewer for more slots on average, and as many in all layers where the average is the most.
"""


def equally(slots: int, most: int, depth: int, layers: int) -> int:
    """Give every layer as many slots."""
    return slots


def allotted(layers: Sequence[LayerShape], slots: int, most: int, rule: LayerRule) -> tuple[int, ...]:
    """Slots per KV head of each layer: by `rule` for full attention, else `slots` and at most the layer's window."""
    full = [index for index, layer in enumerate(layers) if layer.kv_heads and layer.window is None]
    shares = {index: rule(slots, most, depth, len(full)) for depth, index in enumerate(full)}
    return tuple(shares.get(index, layer.slots(slots)) for index, layer in enumerate(layers))


def fewest(layers: Sequence[LayerShape], slots: int, most: int, rule: LayerRule) -> int:
    """Slots per KV head of the smallest layer with full attention; `slots` where there is none."""
    allotment = allotted(layers, slots, most, rule)
    full = [count for count, layer in zip(allotment, layers, strict=True) if layer.kv_heads and layer.window is None]
    return min(full, default=slots)
