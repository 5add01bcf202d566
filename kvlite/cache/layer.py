"""An attention layer: KV heads that may have different numbers of slots, attended over in one to a few parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kvlite.cache.part import LayerHeads, Part
from kvlite.cache.rotation import Rotation
from kvlite.cache.step import Echo, Step
from kvlite.memory.shape import LayerShape
from kvlite_kernels.reference import Geometry


class Layer:
    """Attention layer `index` of a model, of `shape`, whose KV heads are those of `parts`."""

    def __init__(self, index: int, shape: LayerShape, parts: Sequence[Part]) -> None:
        self.index = index
        self.shape = shape
        self.parts = tuple(parts)
        self.rotation: Rotation | None = None
        self.num_bytes = sum(part.num_bytes for part in parts)
        self.slot_bytes = sum(part.slot_bytes for part in parts)
        """Bytes of one slot of all KV heads of a row, with all that is kept beside keys and values."""
        self._counts = [part.shape.kv_heads for part in parts]
        order = [head for part in parts for head in part.heads.numbers]
        device = parts[0].slots.pos.device
        is_sorted = order == sorted(order)
        self._order = None if is_sorted else torch.tensor(order, device=device)
        self._query_order: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """Attend over the live slots and the new tokens, then keep the best, part by part.

        q [n, H_Q, T, D] and the new k [n, H_KV, T, D], v [n, H_KV, T, D_V], already rotated -> out [n, H_Q, T, D_V].
        """
        again = None if step.echo is None else self._moved(q, step.echo)
        if len(self.parts) == 1:
            return self.parts[0].attend(q, k, v, step, geometry, again)
        group, back = q.shape[1] // k.shape[1], None
        if self._order is not None:
            order, back = self._queries(group)
            q, k, v = q.index_select(1, order), k.index_select(1, self._order), v.index_select(1, self._order)
            again = None if again is None else again.index_select(1, order)
            if geometry.sink_logits is not None:
                geometry = replace(geometry, sink_logits=geometry.sink_logits[order])
        segments = [held for part in self.parts if (held := part.held(step)) is not None]
        backend = self.parts[0].group.backend
        if len(segments) == len(self.parts) and backend.go_together(segments, geometry, step.observation):
            keys, values = backend.encode(self.parts[0].slots, k, v)  # once for all parts
            start = 0
            for part in self.parts:
                own = slice(start, start + part.shape.kv_heads)
                part.write(keys[:, own], values[:, own], step)
                start = own.stop
            out = backend.attend_beside(q, segments, geometry, step.observation)
        else:
            new = list(zip(k.split(self._counts, 1), v.split(self._counts, 1), strict=True))
            out = self._attend_each(q, again, new, step, geometry)
        return out if back is None else out.index_select(1, back)

    def _moved(self, q: Tensor, echo: Echo) -> Tensor:
        """The queries of an echo, those of the step moved behind it; where no keys are rotated, as they are."""
        if self.rotation is None:
            return q
        moved = q.clone()
        self.rotation.rotate_(moved, echo.by)
        return moved

    def _attend_each(
        self,
        q: Tensor,
        again: Tensor | None,
        new: Sequence[tuple[Tensor, Tensor]],
        step: Step,
        geometry: Geometry,
    ) -> Tensor:
        """Attend part by part, given the `new` keys and values of each and the queries in their order."""
        outs, start, group = [], 0, q.shape[1] // sum(self._counts)
        for part, (keys, values) in zip(self.parts, new, strict=True):
            asking = slice(start, start + group * part.shape.kv_heads)
            sinks = geometry.sink_logits
            own = geometry if sinks is None else replace(geometry, sink_logits=sinks[asking])
            asked = None if again is None else again[:, asking]
            outs.append(part.attend(q[:, asking], keys, values, step, own, asked))
            start = asking.stop
        return torch.cat(outs, 1)

    def _queries(self, group: int) -> tuple[Tensor, Tensor]:
        """The query heads in the order of the parts, and the way back, for `group` of them per KV head."""
        if group not in self._query_order:
            assert self._order is not None
            order = (self._order[:, None] * group + torch.arange(group, device=self._order.device)).flatten()
            self._query_order[group] = order, order.argsort()
        return self._query_order[group]


def heads_of(layers: Iterable[int], head_slots: Sequence[Sequence[int]], has_noise: bool) -> list[LayerHeads]:
    """The heads of the parts of `layers`, in the order of SlotCache.parts, where they have so many slots."""
    return [LayerHeads(layer, numbers) for layer in layers for numbers in sorted(parted(head_slots[layer], has_noise))]


def parted(head_slots: Sequence[int], has_noise: bool) -> list[tuple[int, ...]]:
    """The KV heads of a layer in parts of equally many slots, by their first head.

    Where the policy's statistic `has_noise`, which hashes the number of a head, those of a part are neighbours.
    """
    parts: list[list[int]] = []
    for head, slots in enumerate(head_slots):
        tried = parts[-1:] if has_noise else parts
        own = next((part for part in tried if head_slots[part[0]] == slots), None)
        if own is None:
            parts.append([head])
        else:
            own.append(head)
    return [tuple(part) for part in parts]
