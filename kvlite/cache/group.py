"""Layers alike, in the same tensors: what all of them do alike is done once a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvlite.cache.layer import Layer, evict_waiting
from kvlite.cache.policy import Policy
from kvlite.cache.step import Step
from kvlite.memory.format import SlotFormat
from kvlite.memory.shape import LayerShape
from kvlite_kernels.backend import Backend
from kvlite_kernels.eviction import Protection
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.slots import Slots, Vectors

SCORED_TOGETHER = 1 << 18
"""Most slots, of all heads, rows and layers, that are scored at once: some 120 bytes each while that lasts."""


class LayerGroup:
    """The layers `indices` of one shape, each with `rows` rows of `num_slots` slots per KV head.

    Where a token goes does not depend on its layer while there is room, and the victim of a decoded token may be chosen
    after all layers have attended. Both are then one operation for the group instead of one per layer.
    """

    def __init__(
        self,
        indices: Sequence[int],
        shape: LayerShape,
        rows: int,
        num_slots: int,
        stored: SlotFormat,
        policy: Policy,
        backend: Backend,
        device: torch.device,
    ) -> None:
        heads = (len(indices), rows, shape.kv_heads, num_slots + 1)
        k, v = (empty_vectors(heads, dim, stored, device) for dim in (shape.k_dim, shape.v_dim))
        self.slots = Slots.empty(k, v, policy.statistic is not None)  # [L, B, H_KV, S + 1]
        recent = max(1, min(policy.recent(num_slots), num_slots - 1))
        self.protection = Protection(recent, policy.sinks, shape.window)
        self.layers = {
            index: Layer(index, shape, self.slots[i], policy, backend, self.protection)
            for i, index in enumerate(indices)
        }
        self._policy, self._backend = policy, backend
        self._together = max(1, SCORED_TOGETHER // (rows * shape.kv_heads * (num_slots + 1)))

    def place(self, step: Step) -> None:
        """Write the positions of tokens whose slots are known before their keys are."""
        mapping = step.mappings[self.slots.num_slots]
        if mapping.index is None:
            return
        slots = self.slots.of_rows(step.rows)
        slots.write(mapping.index, pos=step.pos[:, None], rot=step.rot[:, None])
        if mapping.evicts and slots.statistic is not None:
            slots.statistic[..., -1].zero_()

    def evict(self, step: Step) -> None:
        """Choose the victims of what waits, after all layers have attended."""
        if not step.mappings[self.slots.num_slots].evicts or self._policy.needs_queries:
            return
        slots = self.slots.of_rows(step.rows)
        for start in range(0, len(self.layers), self._together):
            part = slots[start : start + self._together]
            evict_waiting(part, step, self._policy, self._backend, self.protection)


def empty_vectors(heads: tuple[int, ...], dim: int, stored: SlotFormat, device: torch.device) -> Vectors:
    """Zeros [*heads, dim] as `stored` says: numbers, or codes and their scales."""
    if not stored.is_quantised:
        return torch.zeros(*heads, dim, dtype=getattr(torch, stored.name), device=device)
    codes_dtype = torch.uint8 if stored.bits == 4 else torch.int8
    codes: Tensor = torch.zeros(*heads, stored.code_bytes(dim), dtype=codes_dtype, device=device)
    return Packed(codes, torch.zeros(*heads, stored.num_scales(dim), dtype=torch.float16, device=device), dim)
