"""Parts that have equally many slots, of whatever layers, in the same tensors: placed and evicted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from kvlite.cache.part import LayerHeads, Part
from kvlite.cache.policy import Candidates, Policy, PolicyFailed, is_built_in, scored
from kvlite.cache.step import UNHEARD, Step
from kvlite.cache.zeros import zeros
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import CachePlan
from kvlite.memory.shape import LayerShape, ModelShape
from kvlite_kernels.backend import TORCH, Backend
from kvlite_kernels.eviction import Protection, priority
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.slots import Slots, Vectors

SCORED_TOGETHER = 1 << 18
"""Most slots, of all heads, rows and layers, that are scored at once: some 120 bytes each while that lasts."""

ON_A_GPU = 16
"""Times as many there, where each evicting costs its launches."""


class PartGroup:
    """Parts of layers like `shape` but for KV heads, in the same tensors, with `num_slots` slots per KV head.

    Where a token goes does not depend on its layer while there is room, and the victim of a decoded token may be chosen
    after all layers have attended. Both are then one operation for the group instead of one per part. Parts that have
    different numbers of heads lie there head by head. `policy` scores, `backend` computes.
    """

    def __init__(
        self,
        members: Sequence[LayerHeads],
        shape: LayerShape,
        num_slots: int,
        plan: CachePlan,
        stored: SlotFormat,
        policy: Policy,
        backend: Backend,
        device: torch.device,
    ) -> None:
        counts = [len(heads.numbers) for heads in members]
        width = counts[0] if len(set(counts)) == 1 else 1
        size = (sum(counts) // width, plan.rows, width, num_slots + 1)
        k, v = empty_vectors(size, shape, stored, device)
        self.slots = Slots.empty(k, v, policy.statistic is not None, policy.has_bias)
        # [L, B, H_KV, S + 1], or [H, B, 1, S + 1]
        self.policy, self.backend = policy, backend
        most = most_pinned(policy, num_slots, plan) if shape.window is None else None
        self.protection = Protection(_recent(policy, num_slots), policy.sinks, shape.window, most_pinned=most)
        ends = [end // width for end in accumulate(counts)]
        self.parts = [
            Part(heads, replace(shape, kv_heads=count), self, self.slots.joined(slice(end - count // width, end)))
            for heads, count, end in zip(members, counts, ends, strict=True)
        ]
        at_once = SCORED_TOGETHER * (ON_A_GPU if device.type == "cuda" else 1)
        self._together = max(1, at_once // (plan.rows * width * (num_slots + 1)))

    def place(self, step: Step) -> None:
        """Write the positions of tokens whose slots are known before their keys are."""
        mapping = step.mappings[self.slots.num_slots]
        if mapping.index is None:
            return
        slots = self.slots.of_rows(step.rows)
        slots.write(mapping.index, pos=step.pos[:, None], rot=step.rot[:, None])
        if slots.statistic is not None and self.policy.echoes:
            slots.write(mapping.index, statistic=torch.full_like(step.pos, UNHEARD, dtype=torch.float32)[:, None])
        elif slots.statistic is not None and mapping.evicts:
            slots.statistic[..., -1].zero_()

    def clear(self, rows: slice, index: slice) -> None:
        """Leave nothing in the slots `index` of all heads of these rows."""
        slots, count = self.slots.of_rows(rows), index.stop - index.start
        for name, held in slots.tensors():
            held.narrow(slots.starts.dim() - 1, index.start, count).fill_(-1 if name in ("pos", "rot") else 0)

    def evict(self, step: Step) -> None:
        """Choose the victims of what waits, after all layers have attended."""
        if not step.mappings[self.slots.num_slots].evicts or self.policy.needs_queries:
            return
        slots = self.slots.of_rows(step.rows)
        for start in range(0, len(slots.pos), self._together):
            self.evict_from(slots[start : start + self._together], step)

    def evict_from(self, slots: Slots, step: Step, q: Tensor | None = None) -> None:
        """Move each token that waits in the discard slot over the one that the policy scores lowest.

        `slots` are those of `step.rows`, of one part or of several; `q` [n, H_Q, 1, D] are the queries of one.
        """
        next_pos = step.next_pos
        candidates = Candidates(slots.pos, next_pos, slots.statistic, ((slots.k, slots.v),), q)
        self.backend.evict(slots, scored(self.policy, candidates), next_pos, self.protected(step))

    def protected(self, step: Step) -> Protection:
        """The tokens that stay whatever the score.

        Of what is pinned, heads with fewer slots than the others keep the best that they have room for.
        """
        return self.protection if step.pins is None else replace(self.protection, pins=step.pins)


def most_pinned(policy: Policy, num_slots: int, plan: CachePlan) -> int | None:
    """The most tokens that pins hold in a head of a full layer with so many slots; None: all, it is none of the few."""
    left = num_slots - _recent(policy, num_slots) - policy.sinks - 1
    return max(0, left) if num_slots < plan.fewest else None


def _recent(policy: Policy, num_slots: int) -> int:
    return max(1, min(policy.recent(num_slots), num_slots - 1))


def empty_vectors(
    heads: tuple[int, ...], shape: LayerShape, stored: SlotFormat, device: torch.device
) -> tuple[Vectors, Vectors]:
    """Zeros for keys and values [*heads, D] as `stored` says: numbers, or codes and their scales."""

    def empty(dim: int, bits: int) -> Vectors:
        if not stored.is_quantised:
            return zeros((*heads, dim), getattr(torch, stored.name), device)
        codes = zeros((*heads, stored.code_bytes(dim, bits)), torch.int8 if bits == 8 else torch.uint8, device)
        return Packed(codes, zeros((*heads, stored.num_scales(dim)), torch.float16, device), dim)

    return empty(shape.k_dim, stored.k_bits), empty(shape.v_dim, stored.v_bits)


def try_out(policy: Policy, shape: ModelShape, plan: CachePlan, stored: SlotFormat) -> None:
    """Let a plug-in score made-up tokens on the CPU, those of one layer and of two together.

    Raises PolicyFailed where it raises, gives anything but one floating-point number for each, or NaN.
    """
    layer = next((layer for layer in shape.layers if layer.kv_heads), None)
    if layer is None or is_built_in(policy):
        return
    numbers, device = tuple(range(layer.kv_heads)), torch.device("cpu")
    members = [LayerHeads(0, numbers), LayerHeads(1, numbers)]
    group = PartGroup(members, layer, min(plan.fewest, 256), replace(plan, rows=1), stored, policy, TORCH, device)
    made_up = torch.Generator().manual_seed(0)
    for _, tensor in group.slots.tensors():
        tensor.random_(1, 8, generator=made_up)
    group.slots.pos.copy_(torch.arange(group.slots.num_slots + 1) + policy.sinks)
    next_pos = group.slots.pos.amax().view(1, 1, 1) + 1
    q = torch.rand(1, shape.query_heads, 3, layer.k_dim, generator=made_up).to(getattr(torch, shape.dtype))
    asking = q if policy.needs_queries else None
    for slots in [group.slots[0], group.slots][: 1 if policy.needs_queries else 2]:
        candidates = Candidates(slots.pos, next_pos, slots.statistic, ((slots.k, slots.v),), asking)
        score: object = scored(policy, candidates)
        got = f"{score.dtype} {[*score.shape]}" if isinstance(score, Tensor) else type(score).__name__
        if isinstance(score, Tensor) and score.is_floating_point() and score.shape == slots.pos.shape:
            is_free_to_go = priority(torch.zeros_like(score), slots.pos, next_pos, group.protection) == 0
            if not score[is_free_to_go].isnan().any():
                continue
            got = "NaN"
        raise PolicyFailed(
            f"KV policy {policy.name!r}: `score` gave {got}, not a float for each of {[*slots.pos.shape]}"
        )
