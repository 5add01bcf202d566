"""The slots of one attention layer: attend over them, then keep the best. The one rule of prefill and decode."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kvlite.cache.policy import Candidates, Policy
from kvlite.cache.rotation import Rotation, rotate_keys
from kvlite.cache.step import Step
from kvlite.memory.shape import LayerShape
from kvlite_kernels.backend import Backend
from kvlite_kernels.eviction import Protection, choose, priority
from kvlite_kernels.reference import Geometry, Segment
from kvlite_kernels.slots import Slots, tensors_of
from kvlite_kernels.statistic import Observation


class Layer:
    """Attention layer `index`, whose tokens lie in `slots` [B, H_KV, S + 1].

    `policy` scores, `backend` computes, `protection` says who stays whatever the score.
    """

    def __init__(
        self, index: int, shape: LayerShape, slots: Slots, policy: Policy, backend: Backend, protection: Protection
    ) -> None:
        self.index = index
        self.shape = shape
        self.slots = slots
        self.policy = policy
        self.backend = backend
        self.protection = protection
        self.num_slots = slots.num_slots
        self.rotation: Rotation | None = None
        self.tensors = dict(slots.tensors())
        """Every tensor, by name; views of the group's, whose addresses never change."""
        self.num_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self._noise = None if policy.noise is None else replace(policy.noise, layer=index)
        self._read: tuple[tuple[int, int, int, bool], Slots, Segment] | None = None

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of all KV heads of a row, with all that is kept beside keys and values."""
        return self.num_bytes // (self.slots.pos.shape[0] * self.slots.pos.shape[-1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """Attend over the live slots and the new tokens, then keep the best S.

        q [n, H_Q, T, D] and the new k [n, H_KV, T, D], v [n, H_KV, T, D_V], already rotated -> out [n, H_Q, T, D_V].
        A decoded token waits in the discard slot, and its victim is chosen for all layers at once (`LayerGroup.evict`),
        or here where the policy looks at queries.
        """
        mapping = step.mappings[self.num_slots]
        num_queries = q.shape[2]
        q_pos = step.pos if num_queries == step.pos.shape[1] else step.pos[:, -num_queries:]
        observation = step.observation
        if observation is not None and (self._noise is not None or num_queries != step.pos.shape[1]):
            observation = replace(observation, weight=observation.weight[:, -num_queries:], noise=self._noise)
        if mapping.index is None:
            return self._attend_chunk(q, k, v, step, q_pos, geometry, observation)
        window = geometry.window
        all_visible = mapping.all_visible and (window is None or mapping.extent <= min(window, self.num_slots))
        slots, held = self._view(step.rows, mapping.extent, all_visible)
        self.backend.write(slots, mapping.index, k, v)
        out, _ = self.backend.attend(q, q_pos, held, None, geometry, observation)
        if mapping.evicts and self.policy.needs_queries:
            evict_waiting(slots, step, self.policy, self.backend, self.protection, q)
        return out

    def _attend_chunk(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: Step,
        q_pos: Tensor,
        geometry: Geometry,
        observation: Observation | None,
    ) -> Tensor:
        """Attend over slots and a chunk that has no room, and keep the best of both."""
        slots, held = self._view(step.rows, self.num_slots, False)
        keys, values = self.backend.encode(slots, k, v)
        new = Segment(keys, values, step.pos[:, None, -k.shape[2] :])
        out, received = self.backend.attend(q, q_pos, held, new, geometry, observation)
        pos = torch.cat([held.pos, new.pos.expand(-1, held.pos.shape[1], -1)], -1)
        known = None if received is None or held.statistic is None else torch.cat([held.statistic, received], -1)
        candidates = Candidates(pos, step.next_pos, known, ((held.k, held.v), (keys, values)), q)
        ranked = priority(self.policy.score(candidates), pos, candidates.next_pos, _with_pins(self.protection, step))
        index = choose(ranked, pos, self.num_slots)
        self.backend.write(slots, index, keys, values)
        slots.write(index, pos=new.pos, rot=step.rot[:, None, -k.shape[2] :])
        if received is not None:
            slots.write(index, statistic=received)
        return out

    def rerotate(self, row: int, live: int, end: int) -> None:
        """Give the `live` keys of each head of a row consecutive rotations below `end`, in the order of `pos`."""
        if self.rotation is None or live == 0:
            return
        rank = self.slots.pos[row, :, :live].argsort(-1).argsort(-1)
        held = self.slots.rot[row, :, :live]
        new = rank.to(held.dtype) + (end - live)
        rotate_keys(self.slots.k[row, :, :live], new - held, self.rotation)
        held.copy_(new)

    def reset(self, row: int, live: int) -> None:
        """Free the `live` slots of a row and leave nothing of them."""
        for vectors in (self.slots.k, self.slots.v):
            for tensor in tensors_of(vectors):
                tensor[row, :, -1] = 0
                tensor[row, :, :live] = 0  # a value that is not finite would poison even a sum it has no weight in
        self.slots.pos[row].fill_(-1)
        self.slots.rot[row].fill_(-1)
        if self.slots.statistic is not None:
            self.slots.statistic[row].zero_()

    def _view(self, rows: slice, extent: int, all_visible: bool) -> tuple[Slots, Segment]:
        """The slots of `rows` and the first `extent` of them to read; the last view is kept, as decoding repeats it."""
        asked = (rows.start, rows.stop, extent, all_visible)
        if self._read is None or self._read[0] != asked:
            slots = self.slots.of_rows(rows)
            statistic = None if slots.statistic is None else slots.statistic[..., :extent]
            k, v = slots.k[..., :extent, :], slots.v[..., :extent, :]
            self._read = asked, slots, Segment(k, v, slots.pos[..., :extent], statistic, all_visible)
        return self._read[1:]


def evict_waiting(
    slots: Slots, step: Step, policy: Policy, backend: Backend, protection: Protection, q: Tensor | None = None
) -> None:
    """Move each token that waits in the discard slot over the one that `policy` scores lowest.

    `slots` are those of `step.rows`, of one layer or of several; `q` [n, H_Q, 1, D] are the queries of one.
    """
    next_pos = step.next_pos
    candidates = Candidates(slots.pos, next_pos, slots.statistic, ((slots.k, slots.v),), q)
    backend.evict(slots, policy.score(candidates), next_pos, _with_pins(protection, step))


def _with_pins(protection: Protection, step: Step) -> Protection:
    return protection if step.pins is None else replace(protection, pins=step.pins)
