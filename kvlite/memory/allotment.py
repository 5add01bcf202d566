"""Slots of every layer and KV head, given their average: by the policy's rule for layers, by what each head needs.

Heads need between a few and all of the tokens, the same heads whatever the text. So that work on slots stays a few
large operations, a layer's heads have at most `MOST_LENGTHS` numbers of slots, and all numbers of a model come from one
geometric grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import isfinite, log

from kvlite.errors import UsageError
from kvlite.memory.shape import LayerShape

LayerRule = Callable[[int, int, int, int], int]
"""Slots of full-attention layer number `depth` of `layers`: (slots on average, most, depth, layers) -> slots.

Never fewer for more slots on average, and as many in all layers where the average is the most.
"""

HeadShares = Callable[[int], Sequence[Sequence[float]]]
"""Needs of KV heads: (slots of a head on average) -> a number from 0 on per layer of the model and KV head.

Only the ratios count. What is given for layers that slide, or have no keys, is not looked at.
"""

Weights = tuple[tuple[float, ...], ...]
"""Relative slots of the KV heads of each layer, see `weights_of`."""

MOST_LENGTHS = 2
"""Most numbers of slots in one layer: each is attended over by itself."""

STEP = 1.5
"""Ratio of neighbours in the grid of slots per head."""

LEAST_SHARE = 2
"""A head has at least the average slots divided by this, whatever it needs: what is near is of use everywhere."""


def equally(slots: int, most: int, depth: int, layers: int) -> int:
    """Give every layer as many slots."""
    return slots


def by_layer(shares: HeadShares) -> HeadShares:
    """The same needs for all heads of a layer: their mean."""
    return lambda slots: [[sum(heads) / len(heads)] * len(heads) if heads else () for heads in shares(slots)]


def weights_of(layers: Sequence[LayerShape], needs: Sequence[Sequence[float]]) -> Weights:
    """The `needs` of full layers on the grid, at most `MOST_LENGTHS` in a layer; 1 in other layers.

    Raises UsageError where they do not fit the layers, or are no numbers from 0 on.
    """
    if len(needs) != len(layers):
        raise UsageError(f"the needs of heads are given for {len(needs)} layers; the model has {len(layers)}")
    for index, (layer, heads) in enumerate(zip(layers, needs, strict=True)):
        if layer.kind == "full" and len(heads) != layer.kv_heads:
            raise UsageError(f"layer {index} has {layer.kv_heads} KV heads, and the needs of {len(heads)} are given")
        if not all(isfinite(need) and need >= 0 for need in heads):
            raise UsageError(f"the needs of heads in layer {index} are {[*heads]}; give numbers from 0 on")
    known = [need for layer, heads in zip(layers, needs, strict=True) if layer.kind == "full" for need in heads]
    mean = sum(known) / len(known) if known else 0.0
    if mean == 0:
        return tuple((1.0,) * layer.kv_heads for layer in layers)
    least = mean / (4 * LEAST_SHARE)
    return tuple(
        tuple(_on_grid(need / mean) for need in _few([max(least, need) for need in heads]))
        if layer.kind == "full"
        else (1.0,) * layer.kv_heads
        for layer, heads in zip(layers, needs, strict=True)
    )


def allotted(
    layers: Sequence[LayerShape],
    slots: int,
    most: int,
    rule: LayerRule,
    weights: Weights | None = None,
    least: int = 1,
    most_of_head: int | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Slots of each KV head of each layer, of which a full layer's have `slots` on average and at most `most`.

    Full layers share by `rule`, others have `slots` and at most their window. Heads share by `weights`: over the whole
    model, or inside each layer where the rule tells layers apart. None has fewer than `least` while the average allows,
    nor more than `most_of_head`.
    """
    per_layer = of_layers(layers, slots, most, rule)
    if weights is None:
        return tuple((held,) * layer.kv_heads for held, layer in zip(per_layer, layers, strict=True))
    full = [index for index, layer in enumerate(layers) if layer.kind == "full"]
    together = [full] if rule is equally else [[index] for index in full]
    shares: dict[int, tuple[int, ...]] = {}
    for indices in together:
        mean = per_layer[indices[0]] if indices else 0
        counts = Counter(weight for index in indices for weight in weights[index])
        held = _filled(counts, mean, most_of_head or most, max(least, mean // LEAST_SHARE))
        shares |= {index: tuple(held[weight] for weight in weights[index]) for index in indices}
    return tuple(
        shares.get(index, (count,) * layer.kv_heads)
        for index, (count, layer) in enumerate(zip(per_layer, layers, strict=True))
    )


def of_layers(layers: Sequence[LayerShape], slots: int, most: int, rule: LayerRule) -> tuple[int, ...]:
    """Average slots of each layer's heads: by `rule` for full attention, else `slots` and at most its window."""
    full = [index for index, layer in enumerate(layers) if layer.kind == "full"]
    shares = {index: rule(slots, most, depth, len(full)) for depth, index in enumerate(full)}
    return tuple(shares.get(index, layer.slots(slots)) for index, layer in enumerate(layers))


def fewest(layers: Sequence[LayerShape], slots: int, most: int, rule: LayerRule) -> int:
    """The least of `of_layers` in layers with full attention; `slots` where there is none."""
    shares = zip(of_layers(layers, slots, most, rule), layers, strict=True)
    return min((held for held, layer in shares if layer.kind == "full"), default=slots)


def _few(needs: Sequence[float]) -> list[float]:
    """Each of a layer's needs replaced by the mean of its side of the cut, in order, that changes ratios least."""
    order = sorted(range(len(needs)), key=needs.__getitem__)
    logs = [log(needs[head]) for head in order]
    sums, squares = ([0.0, *accumulate(values)] for values in (logs, [x * x for x in logs]))

    def spread(start: int, end: int) -> float:
        return squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start)

    count = len(needs)
    cut = min(range(1, count), key=lambda cut: spread(0, cut) + spread(cut, count), default=count)
    few = [0.0] * count
    for side in (order[:cut], order[cut:]):
        for head in side:
            few[head] = sum(needs[other] for other in side) / len(side)
    return few


def _on_grid(need: float) -> float:
    """The nearest power of `STEP`."""
    return STEP ** round(log(need, STEP))


def _filled(counts: Mapping[float, int], mean: int, most: int, least: int) -> dict[float, int]:
    """Slots by weight, so that heads, counted by weight, have `mean` on average, from `least` to `most` of them.

    They are in the ratio of the weights; what some cannot use, or must have, the others share. Never fewer for a larger
    mean.
    """
    if mean <= least or mean >= most:
        return dict.fromkeys(counts, mean)
    total = mean * sum(counts.values())

    def used(level: float) -> float:
        return sum(count * min(most, max(least, level * weight)) for weight, count in counts.items())

    levels = sorted({bound / weight for weight in counts for bound in (least, most)})
    at = next(at for at, level in enumerate(levels) if used(level) >= total)
    low, high = levels[at - 1], levels[at]
    level = low + (high - low) * (total - used(low)) / (used(high) - used(low))
    return {weight: min(most, max(least, int(level * weight + 1e-6))) for weight in counts}
