"""The tokens of a row that are still kept, position by position, and the best of them where slots become fewer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvlite.cache.cache import CacheSnapshot, SlotCache
from kvlite.cache.layer import heads_of
from kvlite.cache.part import LayerHeads, Part
from kvlite.cache.policy import Candidates, Policy, scored
from kvlite_kernels.eviction import Protection, priority

MOST_SPANS = 16
"""Spans that what is left of one may be in."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A copy of a row for a cache of other slots, whose parts are `heads`."""

    copy: CacheSnapshot
    heads: list[LayerHeads]


@dataclass(frozen=True, slots=True)
class Target:
    """The cache that a row is copied for: slots of each KV head by layer, its policy, and the row's next position.

    `pins` are spans of positions that stay.
    """

    head_slots: Sequence[Sequence[int]]
    policy: Policy
    next_pos: int
    pins: tuple[tuple[int, int], ...]


def kept_by_position(cache: SlotCache, row: int, seen: int) -> Tensor:
    """The share of KV heads that keep each position, float [seen], of full layers (of all where none is full)."""
    parts = ((part.heads.layer, part.slots.pos[row, :, : cache.live(row, part.num_slots)]) for part in cache.parts)
    return _shares(cache, parts, seen)


def kept_spans(cache: SlotCache, row: int, span: tuple[int, int], seen: int) -> list[tuple[int, int]]:
    """The rest of a span of positions: spans of those that a head keeps, or that are not `seen` yet.

    No more than MOST_SPANS, which then also hold positions that are gone.
    """
    start, end = span
    there = (kept_by_position(cache, row, seen)[start:end] > 0).tolist() + [True] * (end - max(start, seen))
    places = [start + place for place, is_there in enumerate(there) if is_there]
    gaps = sorted((after - before, after) for before, after in pairwise(places) if after - before > 1)
    first = sorted([*places[:1], *(after for _, after in gaps[-(MOST_SPANS - 1) :])])
    limits = [*first[1:], end]
    return [(a, max(place for place in places if place < b) + 1) for a, b in zip(first, limits, strict=bool(first))]


def kept_in(cache: SlotCache, moved: Moved, seen: int) -> Tensor:
    """`kept_by_position` of a copy of a row of `cache`."""
    parts = ((heads.layer, held["pos"]) for heads, held in zip(moved.heads, moved.copy.parts, strict=True))
    return _shares(cache, parts, seen)


def _shares(cache: SlotCache, parts: Iterable[tuple[int, Tensor]], seen: int) -> Tensor:
    full = {index for index, layer in cache.layers.items() if layer.shape.window is None} or set(cache.layers)
    kept, heads = torch.zeros(seen, dtype=torch.float64), 0
    for layer, pos in parts:
        if layer in full:
            kept += torch.bincount(pos.cpu().flatten().long(), minlength=seen)
            heads += pos.shape[0]
    return kept / max(1, heads)


def best_kept(cache: SlotCache, row: int, target: Target) -> Moved | None:
    """Copy a row to the host for another cache, whose policy scores what goes where it must.

    None where it cannot tell: its statistic was not kept so far, or it looks at queries and there are none now.
    """
    policy, known = target.policy, cache.policy
    if policy.statistic is not None and _kind(policy) != _kind(known):
        return None
    counts: dict[int, int] = {}  # tokens a head holds, by its slots: those with as many share one count
    for part in cache.parts:
        for head in part.heads.numbers:
            slots = target.head_slots[part.heads.layer][head]
            held = min(cache.live(row, part.num_slots), slots)
            counts[slots] = min(held, counts.get(slots, held))
    places: dict[tuple[int, int], tuple[Part, int, Tensor]] = {}  # of each head, and its slots that go along
    for part in cache.parts:
        live = cache.live(row, part.num_slots)
        wanted = [counts[target.head_slots[part.heads.layer][head]] for head in part.heads.numbers]
        if min(wanted) < live and policy.needs_queries:
            return None
        chosen = [torch.arange(live)] * len(wanted) if min(wanted) == live else _best(part, row, live, wanted, target)
        for place, (head, index) in enumerate(zip(part.heads.numbers, chosen, strict=True)):
            places[part.heads.layer, head] = part, place, index.to(cache.device)

    def copied(layer: int, numbers: Sequence[int], name: str) -> Tensor:
        found = (places[layer, head] for head in numbers)
        return torch.stack([part.tensors[name][row, place, index].cpu() for part, place, index in found])

    heads = heads_of(cache.layers, target.head_slots, policy.noise is not None)
    parts = [
        {
            name: copied(each.layer, each.numbers, name)
            for name in cache.parts[0].tensors
            if (name != "statistic" or policy.statistic is not None) and (name != "bias" or policy.has_bias)
        }
        for each in heads
    ]
    return Moved(CacheSnapshot(counts, parts), heads)


def keeps_all(cache: SlotCache, row: int, head_slots: Sequence[Sequence[int]]) -> bool:
    """True where a cache of these slots of each KV head, by layer, has room for all that a row holds.

    Heads of as many slots hold equally many tokens there.
    """
    held: dict[int, set[int]] = {}
    for part in cache.parts:
        for head in part.heads.numbers:
            held.setdefault(head_slots[part.heads.layer][head], set()).add(cache.live(row, part.num_slots))
    return all(len(counts) == 1 and max(counts) <= slots for slots, counts in held.items())


def _kind(policy: Policy) -> tuple[object, ...]:
    """All that decides what a statistic stands for."""
    return policy.statistic, policy.heads, policy.echoes, policy.has_bias


def _best(part: Part, row: int, live: int, wanted: Sequence[int], target: Target) -> list[Tensor]:
    """The slots of the best of the `live` tokens of each head, as many as `wanted` of it, in slot order."""
    policy, slots = target.policy, part.slots.of_rows(slice(row, row + 1))
    pos = slots.pos[..., :live]
    next_pos = torch.full((1, 1, 1), target.next_pos, device=pos.device)
    statistic = None if slots.statistic is None else slots.statistic[..., :live]
    score = scored(policy, Candidates(pos, next_pos, statistic, ((slots.k[..., :live, :], slots.v[..., :live, :]),)))
    pins = torch.tensor([target.pins], dtype=torch.int32, device=pos.device) if target.pins else None
    best = []
    for place, count in enumerate(wanted):
        recent = max(1, min(policy.recent(count), count - 1))
        most_pinned = max(0, count - recent - policy.sinks - 1)
        protection = Protection(recent, policy.sinks, part.shape.window, pins, most_pinned)
        held = pos[:, place : place + 1]
        ranked = priority(score[:, place : place + 1], held, next_pos, protection)
        order = held.argsort(dim=-1)  # of equals the oldest goes first
        order = order.gather(-1, ranked.gather(-1, order).argsort(dim=-1, stable=True))
        best.append(order[0, 0, live - count :].sort().values)
    return best
