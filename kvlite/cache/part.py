"""The slots of KV heads that have equally many: attend over them, then keep the best.

The one rule of prefill and decode. A layer whose heads all have as many is one part.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvlite.cache.policy import Candidates, scored
from kvlite.cache.rotation import Rotation, rotate_keys
from kvlite.cache.step import UNHEARD, Echo, Received, SlotMapping, Step
from kvlite.memory.shape import LayerShape
from kvlite_kernels.bias import handed_on
from kvlite_kernels.eviction import choose, priority
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.reference import Geometry, Segment
from kvlite_kernels.slots import Slots, Vectors, tensors_of
from kvlite_kernels.statistic import Observation

if TYPE_CHECKING:
    from kvlite.cache.group import PartGroup


@dataclass(frozen=True, slots=True)
class LayerHeads:
    """The KV heads `numbers` of layer `layer`, in order."""

    layer: int
    numbers: tuple[int, ...]


class Part:
    """KV heads of a layer, in a `group`, whose tokens lie in `slots` [B, H_KV, S + 1]; `shape` is of these alone."""

    def __init__(self, heads: LayerHeads, shape: LayerShape, group: PartGroup, slots: Slots) -> None:
        self.heads = heads
        self.shape = shape
        self._group = weakref.ref(group)  # so that a cache is freed at once when the last reference goes
        self.slots = slots
        self.num_slots = slots.num_slots
        self.tensors = dict(slots.tensors())
        """Every tensor, by name; views of the group's, whose addresses never change."""
        self.num_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self._noise = None if group.policy.noise is None else replace(group.policy.noise, layer=heads.layer)
        self._read: tuple[tuple[int, int, int, int | None, int], Slots, Segment] | None = None

    @property
    def group(self) -> PartGroup:
        """The group, which lives as long as its cache."""
        group = self._group()
        assert group is not None
        return group

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of all KV heads of a row, with all that is kept beside keys and values."""
        return self.num_bytes // (self.slots.pos.shape[0] * self.slots.pos.shape[-1])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry, again: Tensor | None = None
    ) -> Tensor:
        """Attend over the live slots and the new tokens, then keep the best S.

        q [n, H_Q, T, D] and the new k [n, H_KV, T, D], v [n, H_KV, T, D_V], already rotated -> out [n, H_Q, T, D_V].
        `again` [n, H_Q, T, D] are the queries of the step's echo.
        A decoded token waits in the discard slot, and its victim is chosen for all layers at once (`PartGroup.evict`),
        or here where the policy looks at queries.
        """
        if step.turns is not None:
            return self._attend_in_turn(q, k, v, step, geometry)
        mapping, backend = step.mappings[self.num_slots], self.group.backend
        num_queries = q.shape[2]
        q_pos = step.pos if num_queries == step.pos.shape[1] else step.pos[:, -num_queries:]
        observation = self._observation(step, num_queries, q.shape[1] // k.shape[1])
        before = self._before(mapping, geometry.window) if num_queries == k.shape[2] == step.pos.shape[1] else None
        slots, held = self._view(step.rows, mapping, before, num_queries)
        if mapping.index is not None:
            if not step.is_again:
                backend.write(slots, mapping.index, k, v)
            out, _ = backend.attend(q, q_pos, [held], geometry, observation)
            if step.echo is not None and again is not None and held.statistic is not None:
                seen = replace(held, before=mapping.extent) if step.is_again and geometry.window is None else held
                heard = self._heard(again, step.echo, [seen], geometry)
                held.statistic.copy_(torch.where(held.pos >= step.echo.first, heard, held.statistic))
            if mapping.evicts and self.group.policy.needs_queries:
                self.group.evict_from(slots, step, q)
            return out
        keys, values = backend.encode(slots, k, v)
        own = (0, num_queries) if before is not None else ()
        new = Segment(keys, values, step.pos[:, None, -k.shape[2] :], None, *own)
        out, received = backend.attend(q, q_pos, [held, new], geometry, observation)
        if self.group.policy.echoes:
            received = torch.full(k.shape[:3], UNHEARD, device=k.device)
        if step.echo is not None and again is not None:
            heard = self._heard(again, step.echo, [held, new], geometry)
            received = torch.where(new.pos >= step.echo.first, heard, UNHEARD)
        self._keep_best(slots, held, replace(new, statistic=received), step, q)
        return out

    def _attend_in_turn(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """Attend the new tokens one after another, each over the slots and those up to itself, which have room.

        What each adds to the statistic waits in `step.turns` until it is kept.
        """
        mapping, backend, slots = step.mappings[self.num_slots], self.group.backend, self.slots.of_rows(step.rows)
        assert step.turns is not None and isinstance(mapping.index, slice) and q.shape[2] == k.shape[2]
        backend.write(slots, mapping.index, k, v)
        seen = []
        for extent in range(mapping.index.start + 1, mapping.index.stop + 1):
            before = self._before(replace(mapping, extent=extent, before=extent), geometry.window)
            keys, values = slots.k[..., :extent, :], slots.v[..., :extent, :]
            bias = None if slots.bias is None else slots.bias[..., :extent]
            seen.append(Segment(keys, values, slots.pos[..., :extent], None, before, bias=bias))
        observation = self._observation(step, 1, q.shape[1] // k.shape[1])
        out, shares = backend.attend_in_turn(q, step.pos, seen, geometry, observation)
        if observation is not None and slots.statistic is not None:
            step.turns.received.append(Received(slots.statistic, observation, shares))
        return out

    def _observation(self, step: Step, num_queries: int, group: int) -> Observation | None:
        """The observation of a step's last queries, `group` of which share a KV head of these."""
        observation = step.observation
        if observation is None or (self._noise is None and num_queries == observation.weight.shape[1]):
            return observation
        noise = None if self._noise is None else replace(self._noise, first_head=self.heads.numbers[0] * group)
        return replace(observation, weight=observation.weight[:, -num_queries:], noise=noise)

    def _heard(self, again: Tensor, echo: Echo, segments: list[Segment], geometry: Geometry) -> Tensor:
        """Sum up what keys of the last segment receive from the queries of an echo, `again`: fp32 [n, H_KV, N]."""
        last = slice(-again.shape[2], None)  # some layers have the queries of the newest tokens alone
        observation = Observation(Statistic.MASS, echo.weight[:, last], heads=self.group.policy.heads)
        return self.group.backend.heard(again, echo.pos[:, last], segments, geometry, observation)

    def held(self, step: Step) -> Segment | None:
        """The slots that one token of each row attends over, its own among them; None where more than that is done.

        More is done where there are several tokens, an echo, a window, or a policy that looks at queries.
        """
        mapping = step.mappings[self.num_slots]
        is_more = mapping.index is None or self.shape.window is not None or self.group.policy.needs_queries
        is_more |= step.pos.shape[1] > 1 or step.echo is not None
        return None if is_more else self._view(step.rows, mapping, mapping.before, 1)[1]

    def write(self, k: Vectors, v: Vectors, step: Step) -> None:
        """Put the new k [n, H_KV, T, D] and v [n, H_KV, T, D_V], encoded or not, where the step has their slots."""
        index = step.mappings[self.num_slots].index
        assert index is not None
        self.group.backend.write(self.slots.of_rows(step.rows), index, k, v)

    def _keep_best(self, slots: Slots, held: Segment, new: Segment, step: Step, q: Tensor) -> None:
        """Keep the best of `held`, which are all of `slots`, and of a chunk that has no room."""
        pos = torch.cat([held.pos, new.pos.expand(-1, held.pos.shape[1], -1)], -1)
        known = None
        if held.statistic is not None and new.statistic is not None:
            known = torch.cat([held.statistic, new.statistic], -1)
        candidates = Candidates(pos, step.next_pos, known, ((held.k, held.v), (new.k, new.v)), q)
        ranked = priority(scored(self.group.policy, candidates), pos, step.next_pos, self.group.protected(step))
        index = choose(ranked, pos, self.num_slots)
        if slots.bias is not None and step.echo is not None:
            self._hand_on(slots, candidates, index)
        self.group.backend.write(slots, index, new.k, new.v)
        slots.write(index, pos=new.pos, rot=step.rot[:, None, -new.pos.shape[2] :])
        if new.statistic is not None:
            slots.write(index, statistic=new.statistic)
        if slots.bias is not None:
            slots.bias[..., -1] = 0.0  # where tokens went that did not stay

    def _hand_on(self, slots: Slots, candidates: Candidates, index: Tensor) -> None:
        """Give every token that goes to the kept one whose key is most like its own: as bias, before any is moved.

        `index` [n, H_KV, T] are the slots of the new tokens among the `candidates`.
        """
        pos, num_slots, bias = candidates.pos, self.num_slots, slots.bias
        assert bias is not None
        stays = index < num_slots
        is_taken = torch.zeros_like(pos[..., : num_slots + 1], dtype=torch.bool).scatter_(-1, index, True)
        goes = torch.cat([is_taken[..., :num_slots], ~stays], -1)
        first = 0 if self.shape.window is not None else self.group.policy.sinks
        takes = ~goes & (pos >= first)
        held_bias = torch.cat([bias[..., :num_slots], torch.zeros_like(index, dtype=bias.dtype)], -1)
        keys = [k for k, _ in candidates.held]
        gone = goes.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., : index.shape[-1]]
        known = candidates.statistic.masked_fill((candidates.statistic >= UNHEARD) | (pos < 0), 0.0)
        found = handed_on(keys, known, held_bias, gone, takes)
        bias[..., :num_slots] = found[..., :num_slots]
        slots.write(index, bias=found[..., num_slots:])

    def rerotate(self, row: int, live: int, end: int, rotation: Rotation) -> None:
        """Give the `live` keys of each head of a row consecutive rotations below `end`, in the order of `pos`."""
        rank = self.slots.pos[row, :, :live].argsort(-1).argsort(-1)
        held = self.slots.rot[row, :, :live]
        new = rank.to(held.dtype) + (end - live)
        rotate_keys(self.slots.k[row, :, :live], new - held, rotation)
        held.copy_(new)

    def reset(self, row: int, live: int) -> None:
        """Free the `live` slots of a row and leave nothing of them."""
        for vectors in (self.slots.k, self.slots.v):
            for tensor in tensors_of(vectors):
                tensor[row, :, -1] = 0
                tensor[row, :, :live] = 0  # a value that is not finite would poison even a sum it has no weight in
        self.slots.pos[row].fill_(-1)
        self.slots.rot[row].fill_(-1)
        for known in (self.slots.statistic, self.slots.bias):
            if known is not None:
                known[row].zero_()

    def _before(self, mapping: SlotMapping, window: int | None) -> int | None:
        """The first slots that every query sees, as `mapping` has it, where no window hides any token of the step."""
        has_all = mapping.index is not None and mapping.extent <= min(window or 0, self.num_slots)
        fits = window is None or (has_all and not mapping.has_gaps)
        return mapping.before if fits else None

    def _view(self, rows: slice, mapping: SlotMapping, before: int | None, tokens: int) -> tuple[Slots, Segment]:
        """The slots of `rows` and those of them to read; the last view is kept, as decoding repeats it."""
        extent = mapping.extent
        own = 0 if before is None or mapping.index is None else min(tokens, extent - before)
        asked = (rows.start, rows.stop, extent, before, own)
        if self._read is None or self._read[0] != asked:
            slots = self.slots.of_rows(rows)
            statistic, bias = (None if x is None else x[..., :extent] for x in (slots.statistic, slots.bias))
            k, v = slots.k[..., :extent, :], slots.v[..., :extent, :]
            self._read = asked, slots, Segment(k, v, slots.pos[..., :extent], statistic, before, own, bias)
        return self._read[1:]
