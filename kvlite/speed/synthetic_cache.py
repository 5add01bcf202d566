"""A synthetic cache: the state of a conversation of a million tokens, made in a moment without feeding it.

The cost of a step depends on the number of live slots and on their positions, not on their text. So the keys and values
of a few tokens that were fed are repeated until the slots are full, at positions that a conversation of that length
could have left: sinks, tokens spread over the middle, the recent window; in sliding layers the newest. Keys are
re-rotated to the rotations of their slots, and attention mass that accumulates is scaled to a token's new age.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kvlite.cache.cache import CacheSnapshot
from kvlite.cache.layer import heads_of
from kvlite.cache.part import Part
from kvlite.engine.engine import Engine
from kvlite.engine.rows import RowSnapshot
from kvlite.errors import ContextFull


def longest_conversation(engine: Engine) -> int | None:
    """The most tokens a conversation of this engine can have seen; None where it does not end."""
    ends = [engine.loaded.window] if engine.loaded.rotations is None else []
    ends += [engine.plan.fewest] if engine.rows.on_full != "evict" else []
    return min((end for end in ends if end is not None), default=None)


def fast_forward(engine: Engine, row: int, held: RowSnapshot, seen: int, seed: int = 0) -> None:
    """Fill `row` as a conversation of `seen` tokens, at least 1, would leave it.

    `held` is a row that was fed a few tokens. Raises ContextFull where no conversation can have seen as many.
    """
    end = longest_conversation(engine)
    if end is not None and seen > end:
        raise ContextFull(f"a conversation ends here after {end:,} tokens and cannot have seen {seen:,}; give fewer")
    engine.rows.reset(row)
    engine.rows.make_room(row, seen)
    live = {part.num_slots: min(part.num_slots, seen) for part in engine.cache.parts}
    turns = engine.loaded.rotations is not None
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _stretched(part, tensors, held.row.seen, seen, turns, generator)
        for part, tensors in zip(engine.cache.parts, _regrouped(engine, held), strict=True)
    ]
    next_rotation = max(live.values(), default=seen) if turns else seen
    there = replace(held.row, seen=seen, rot=next_rotation, echoed=seen, peak_bytes=0)
    engine.rows.restore(row, replace(held, cache=CacheSnapshot(live, parts), row=there, plan=engine.plan))
    if turns:
        engine.cache.rerotate(row)


def _regrouped(engine: Engine, held: RowSnapshot) -> list[dict[str, Tensor]]:
    """The tensors of a row by the parts that the cache has now."""
    layers, has_noise = engine.cache.layers, engine.rows.policy.noise is not None
    before = heads_of(layers, held.plan.head_slots, has_noise)
    by_head = {
        (heads.layer, head): {name: tensor[place] for name, tensor in tensors.items()}
        for heads, tensors in zip(before, held.cache.parts, strict=True)
        for place, head in enumerate(heads.numbers)
    }
    now = (
        [by_head[heads.layer, head] for head in heads.numbers] for heads in (part.heads for part in engine.cache.parts)
    )
    return [{name: torch.stack([head[name] for head in of_part]) for name in of_part[0]} for of_part in now]


def _stretched(
    part: Part, held: dict[str, Tensor], was_seen: int, seen: int, turns: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    """A part's live slots [H_KV, n, ...] repeated to those that `seen` tokens leave, each head in its own order."""
    heads, num_held = held["pos"].shape
    num_live = min(part.num_slots, seen)
    positions = _positions(part, num_live, seen)
    order = torch.rand(heads, num_live, generator=generator).argsort(-1)
    source = torch.arange(num_live) % num_held
    stretched = {name: tensor[:, source] for name, tensor in held.items()}
    pos = positions[order]
    if "statistic" in stretched and part.group.policy.decay == 1.0 and part.group.policy.observed is None:
        was_age = (was_seen - stretched["pos"]).clamp(min=1)
        stretched["statistic"] = stretched["statistic"] * ((seen - pos) / was_age)
    stretched["pos"] = pos
    if not turns:
        stretched["rot"] = pos
    return stretched


def _positions(part: Part, num_live: int, seen: int) -> Tensor:
    """The ascending positions int32 [num_live] that a head could hold after `seen` tokens."""
    if part.shape.window is not None or num_live == seen:
        return torch.arange(seen - num_live, seen, dtype=torch.int32)
    recent = min(part.group.protection.recent, num_live)
    sinks = min(part.group.policy.sinks, num_live - recent)
    between = num_live - recent - sinks
    spread = sinks + torch.arange(between) * (seen - recent - sinks) // max(1, between)
    return torch.cat([torch.arange(sinks), spread, torch.arange(seen - recent, seen)]).to(torch.int32)
