"""The tokens of a row that are still kept, position by position, and the best of them where slots become fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kvlite.cache.cache import CacheSnapshot, SlotCache
from kvlite.cache.layer import Layer
from kvlite.cache.policy import Candidates, Policy
from kvlite_kernels.eviction import Protection, priority


def kept_by_position(cache: SlotCache, row: int, seen: int) -> Tensor:
    """The share of KV heads that keep each position, float [seen], of full layers (of all where none is full)."""
    live = {index: cache.live(row, layer.num_slots) for index, layer in cache.layers.items()}
    return _shares(
        cache, {index: layer.slots.pos[row, :, : live[index]] for index, layer in cache.layers.items()}, seen
    )


def kept_in(cache: SlotCache, copy: CacheSnapshot, seen: int) -> Tensor:
    """`kept_by_position` of a copy of a row of `cache`."""
    return _shares(cache, {index: tensors["pos"] for index, tensors in copy.layers.items()}, seen)


def _shares(cache: SlotCache, positions: Mapping[int, Tensor], seen: int) -> Tensor:
    full = [index for index, layer in cache.layers.items() if layer.shape.window is None] or list(positions)
    kept = torch.zeros(seen, dtype=torch.float64)
    for index in full:
        kept += torch.bincount(positions[index].cpu().flatten().long(), minlength=seen)
    return kept / max(1, sum(positions[index].shape[0] for index in full))


def best_kept(
    cache: SlotCache, row: int, next_pos: int, pins: tuple[tuple[int, int], ...], slots: Mapping[int, int], to: Policy
) -> CacheSnapshot | None:
    """Copy a row for a cache whose layers have `slots` and the policy `to`, which scores what goes where it must.

    None where it cannot tell: its statistic was not kept so far, or it looks at queries and there are none now.
    """
    known = cache.policy
    if to.statistic is not None and (to.statistic, to.heads) != (known.statistic, known.heads):
        return None
    live: dict[int, int] = {}
    for index, layer in cache.layers.items():
        held = min(cache.live(row, layer.num_slots), slots[index])
        live[slots[index]] = min(held, live.get(slots[index], held))
    layers: dict[int, dict[str, Tensor]] = {}
    for index, layer in cache.layers.items():
        count, held = live[slots[index]], cache.live(row, layer.num_slots)
        if count < held and to.needs_queries:
            return None
        chosen = None if count == held else _best(layer, row, held, count, next_pos, pins, to)
        layers[index] = {name: _taken(tensor[row, :, :held], chosen) for name, tensor in layer.tensors.items()}
    return CacheSnapshot(live, layers)


def _best(
    layer: Layer, row: int, held: int, count: int, next_pos: int, pins: tuple[tuple[int, int], ...], policy: Policy
) -> Tensor:
    """The slots of the `count` best of `held` tokens of each head, in slot order: int64 [H_KV, count]."""
    slots = layer.slots.of_rows(slice(row, row + 1))
    pos = slots.pos[..., :held]
    after = torch.full((1, 1, 1), next_pos, device=pos.device)
    statistic = None if slots.statistic is None else slots.statistic[..., :held]
    score = policy.score(Candidates(pos, after, statistic, ((slots.k[..., :held, :], slots.v[..., :held, :]),)))
    recent = max(1, min(policy.recent(count), count - 1))
    protection = Protection(recent, policy.sinks, layer.shape.window)
    if pins:
        protection = replace(protection, pins=torch.tensor([pins], dtype=torch.int32, device=pos.device))
    ranked = priority(score, pos, after, protection)
    order = pos.argsort(dim=-1)  # of equals the oldest goes first
    order = order.gather(-1, ranked.gather(-1, order).argsort(dim=-1, stable=True))
    best: Tensor = order[0, :, held - count :].sort(-1).values
    return best


def _taken(tensor: Tensor, chosen: Tensor | None) -> Tensor:
    """The chosen slots of [H_KV, N, ...], or all of them, on the host."""
    if chosen is None:
        return tensor.to("cpu", copy=True)
    index = chosen.view(*chosen.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
    return tensor.gather(1, index).cpu()
