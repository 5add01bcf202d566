"""One layer's slots: tensors allocated once, overwritten in place. Knows nothing of models, text or requests.

Slot i of two heads holds different tokens; `pos` says which, and order means nothing. Behind the S slots of each head
lies one more, the discard slot: a scatter sends there what is not kept, so that shapes never depend on data, and a
decoded token waits there while a victim is chosen. It is counted in the budget as staging.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvlite.cache.policy import Policy, Statistic
from kvlite.cache.rotation import Rotation
from kvlite.cache.step import Step
from kvlite.cache.store import SlotStore, put
from kvlite.memory.shape import LayerShape
from kvlite_kernels.reference import Geometry, Segment, Vectors, attend_segments, evict


class LayerSlots:
    """Fixed tensors of one attention layer for B rows: the store's, and pos, rot, mass [B, H_KV, S + 1].

    Sliding layers see `window` positions back: expired tokens go first there, and sinks and pins are not kept.
    """

    def __init__(self, shape: LayerShape, slots: int, rows: int, policy: Policy, store: SlotStore) -> None:
        self.shape = shape
        self.slots = slots
        self.policy = policy
        self.recent = max(1, min(policy.recent(slots), slots - 1))
        self.store = store
        self.rotation: Rotation | None = None
        device = next(iter(store.tensors.values())).device
        heads = (rows, shape.kv_heads, slots + 1)
        self.pos = torch.full(heads, -1, dtype=torch.int32, device=device)
        self.rot = torch.full(heads, -1, dtype=torch.int32, device=device)
        keeps_mass = policy.statistic is Statistic.MASS
        self.mass = torch.zeros(heads, dtype=torch.float32, device=device) if keeps_mass else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the layer by name; their first three dimensions are B, H_KV, S + 1."""
        held = {**self.store.tensors, "pos": self.pos, "rot": self.rot}
        return held if self.mass is None else {**held, "mass": self.mass}

    @property
    def num_bytes(self) -> int:
        """Bytes reserved, the discard slots included."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot in all KV heads of one row."""
        return self.num_bytes // (self.pos.shape[0] * (self.slots + 1))

    def reset(self, row: int, live: int) -> None:
        """Free the `live` slots of a row and leave nothing of them."""
        self.store.clear(row, live)
        self.pos[row].fill_(-1)
        self.rot[row].fill_(-1)
        if self.mass is not None:
            self.mass[row].zero_()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """Attend over the live slots and the new tokens, then keep the best S: the one rule of prefill and decode.

        q [n, H_Q, T, D] and the new k [n, H_KV, T, D], v [n, H_KV, T, D_V], already rotated -> out [n, H_Q, T, D_V].
        """
        placement = step.placements[self.slots]
        query, keys, values = self.store.encode(q, k, v)
        if placement.index is not None:
            out = self._append(query, keys, values, step, geometry, placement.extent, placement.index)
        elif k.shape[2] == 1:
            out = self._decode(query, keys, values, step, geometry)
        else:
            out = self._prefill(query, keys, values, step, geometry, placement.extent)
        return self.store.decode(out).to(q.dtype)

    def rerotate(self, row: int, live: int, end: int) -> None:
        """Give the `live` keys of each head of a row consecutive rotations below `end`, in the order of `pos`."""
        if self.rotation is None or live == 0:
            return
        rank = self.pos[row, :, :live].argsort(-1).argsort(-1)
        new = rank.to(self.rot.dtype) + (end - live)
        held = self.rot[row, :, :live]
        self.store.rotate(row, new - held, self.rotation)
        held.copy_(new)

    def _append(
        self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry, extent: int, index: Tensor | slice
    ) -> Tensor:
        """Every row has room: write first, then slots and new tokens are one segment."""
        self._write(step.rows, index, k, v, step, None)
        return self._attend(q, [self._segment(step.rows, extent)], step, geometry)[0]

    def _prefill(self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry, extent: int) -> Tensor:
        new_pos = step.pos[:, None, -k.shape[2] :]
        segments = [self._segment(step.rows, extent), Segment(k, v, new_pos)]
        out, masses = self._attend(q, segments, step, geometry)
        new_mass = masses[1] if masses else None
        new_pos = new_pos.expand(-1, self.shape.kv_heads, -1)
        index = self._choose(step, self._priority(new_mass, new_pos, step), new_pos)
        self._write(step.rows, index, k, v, step, new_mass)
        return out

    def _decode(self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry) -> Tensor:
        """One token per row against full slots: it waits in the discard slot, so that all keys are one segment."""
        rows, waiting = step.rows, slice(self.slots, self.slots + 1)
        self._write(rows, waiting, k, v, step, None)
        out, _ = self._attend(q, [self._segment(rows, self.slots + 1)], step, geometry)
        new_pos = step.pos[:, None, -1:].expand(-1, self.shape.kv_heads, -1)
        # The newest token is inside every recent window; only padding is not kept.
        new_priority = torch.where(new_pos >= 0, torch.inf, -torch.inf)
        new_mass = None if self.mass is None else self.mass[rows, :, waiting].clone()
        self._write(rows, self._choose(step, new_priority, new_pos), k, v, step, new_mass)
        return out

    def _attend(
        self, q: Tensor, segments: list[Segment], step: Step, geometry: Geometry
    ) -> tuple[Tensor, list[Tensor]]:
        """Attend, and add to the mass of the slots, which are the first segment, what they received."""
        num_queries = q.shape[2]
        weight = None if self.mass is None else step.weight[:, -num_queries:]
        out, masses = attend_segments(q, step.pos[:, -num_queries:], segments, geometry, weight)
        if self.mass is not None:
            held = self.mass[step.rows, :, : masses[0].shape[-1]]
            if self.policy.decay != 1.0:
                held *= self.policy.decay ** (step.pos >= 0).sum(-1)[:, None, None]
            held += masses[0]
        return out, masses

    def _segment(self, rows: slice, extent: int) -> Segment:
        return Segment(*self.store.view(rows, extent), self.pos[rows, :, :extent])

    def _choose(self, step: Step, new_priority: Tensor, new_pos: Tensor) -> Tensor:
        """The slot of each new token, int64 [n, H_KV, T]; the discard slot where it is not kept."""
        pos = self.pos[step.rows, :, : self.slots]
        mass = None if self.mass is None else self.mass[step.rows, :, : self.slots]
        return evict(self._priority(mass, pos, step), pos, new_priority, new_pos)

    def _priority(self, mass: Tensor | None, pos: Tensor, step: Step) -> Tensor:
        """The policy's score under the protections: +inf is kept, -inf is a free slot and goes first."""
        next_pos = step.pos[:, -1:, None] + 1  # padding is on the left
        score = self.policy.score(mass, pos, next_pos)
        protected = pos >= next_pos - self.recent
        if self.shape.window is not None:
            expired = pos <= next_pos - self.shape.window
            score = score.masked_fill(expired, torch.finfo(score.dtype).min)
        else:
            protected = protected | (pos < self.policy.sinks)
            if step.pins is not None:
                start, end = step.pins[:, None, None].unbind(-1)  # [n, 1, 1, P]
                protected |= ((pos[..., None] >= start) & (pos[..., None] < end)).any(-1)
        return score.masked_fill(protected, torch.inf).masked_fill(pos < 0, -torch.inf)

    def _write(
        self, rows: slice, index: Tensor | slice, k: Vectors, v: Vectors, step: Step, mass: Tensor | None
    ) -> None:
        """Put the new tokens into the slots `index`, as `put` does; their mass starts at `mass`, or at 0."""
        num_new = k.shape[2]
        self.store.write(rows, index, k, v)
        put(self.pos, rows, index, step.pos[:, None, -num_new:])
        put(self.rot, rows, index, step.rot[:, None, -num_new:])
        if self.mass is not None:
            put(self.mass, rows, index, step.weight.new_zeros(len(step.counts), 1, num_new) if mass is None else mass)
