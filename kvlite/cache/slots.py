"""One layer's slots: tensors allocated once, overwritten in place. Knows nothing of models, text or requests.

Slot i of two heads holds different tokens; `pos` says which, and order means nothing. Behind the S slots of each head
lies one more, the discard slot: a scatter sends there what is not kept, so that shapes never depend on data, and a
decoded token waits there while a victim is chosen. It is counted in the budget as staging.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kvlite.cache.policy import Candidates, Policy
from kvlite.cache.rotation import Rotation
from kvlite.cache.step import Placement, Step
from kvlite.cache.store import SlotStore, put
from kvlite.memory.shape import LayerShape
from kvlite_kernels.choice import TORCH, KernelSet
from kvlite_kernels.features import norms, similarity
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.reference import Geometry, Segment, Vectors, evict, victim
from kvlite_kernels.slots import Arriving, Held, Ranking
from kvlite_kernels.statistic import Measure


class LayerSlots:
    """Fixed tensors of attention layer `index` for B rows: the store's, and pos, rot, statistic [B, H_KV, S + 1].

    Sliding layers see `window` positions back: expired tokens go first there, and sinks and pins are not kept.
    """

    def __init__(
        self,
        index: int,
        shape: LayerShape,
        slots: int,
        rows: int,
        policy: Policy,
        store: SlotStore,
        kernels: KernelSet = TORCH,
    ) -> None:
        self.shape = shape
        self.slots = slots
        self.policy = policy
        self.recent = max(1, min(policy.recent(slots), slots - 1))
        self.store = store
        self.kernels = kernels
        self.rotation: Rotation | None = None
        device = next(iter(store.tensors.values())).device
        heads = (rows, shape.kv_heads, slots + 1)
        self.pos = torch.full(heads, -1, dtype=torch.int32, device=device)
        self.rot = torch.full(heads, -1, dtype=torch.int32, device=device)
        accumulates = policy.statistic.accumulates
        self.statistic = torch.zeros(heads, dtype=torch.float32, device=device) if accumulates else None
        self._starts = torch.arange(0, heads[0] * heads[1] * heads[2], heads[2], device=device).view(*heads[:2], 1)
        self._noise = None if policy.noise is None else replace(policy.noise, layer=index)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the layer by name; their first three dimensions are B, H_KV, S + 1."""
        held = {**self.store.tensors, "pos": self.pos, "rot": self.rot}
        return held if self.statistic is None else {**held, "statistic": self.statistic}

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
        if self.statistic is not None:
            self.statistic[row].zero_()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        """Attend over the live slots and the new tokens, then keep the best S: the one rule of prefill and decode.

        q [n, H_Q, T, D] and the new k [n, H_KV, T, D], v [n, H_KV, T, D_V], already rotated -> out [n, H_Q, T, D_V].
        """
        placement = step.placements[self.slots]
        query, keys, values = self._encoded(q, k, v)
        if placement.index is not None:
            out = self._append(query, keys, values, step, geometry, placement)
        elif k.shape[2] == 1:
            out = self._decode(query, keys, values, step, geometry, placement.is_whole)
        else:
            out = self._prefill(query, keys, values, step, geometry)
        return self.store.decode(out).to(q.dtype)

    def _encoded(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Vectors, Vectors]:
        """In the store's form; kernels multiply in the model's dtype, and code keys and values as they insert them."""
        query, keys, values = self.store.encode(q, k, v)
        if self.kernels.slots is not None:
            return query.to(q.dtype), keys, values
        return query, *self.store.coded(keys, values)

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
        self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry, placement: Placement
    ) -> Tensor:
        """Every row has room: write first, then slots and new tokens are one segment."""
        assert placement.index is not None
        self._write(step.rows, placement.index, k, v, step)
        if k.shape[2] == 1 and self._decodes_in_place:
            return self._attend_in_place(q, step, geometry, placement.extent, None)
        is_inside = geometry.window is None or placement.extent <= geometry.window
        segment = self._segment(step.rows, placement.extent, placement.is_whole and is_inside)
        return self._attend(q, [segment], step, geometry)[0]

    def _prefill(self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry) -> Tensor:
        chunk = Segment(*self.store.coded(k, v), step.pos[:, None, -k.shape[2] :])
        segments = [self._segment(step.rows, self.slots, False), chunk]
        out, received = self._attend(q, segments, step, geometry)
        self._evict(segments, k, v, step, received[1] if received else None)
        return out

    def _decode(self, q: Tensor, k: Vectors, v: Vectors, step: Step, geometry: Geometry, is_whole: bool) -> Tensor:
        """One token per row against full slots: it waits in the discard slot, so that all keys are one segment."""
        waiting = slice(self.slots, self.slots + 1)
        self._write(step.rows, waiting, k, v, step)
        if self._decodes_in_place and self.policy.rank is not None:
            ranking = Ranking(self.policy.rank, self.recent, self.policy.sinks, self.slots, step.pins)
            return self._attend_in_place(q, step, geometry, self.slots + 1, ranking)
        if self.statistic is not None:
            self.statistic[step.rows, :, waiting] = 0.0
        segment = self._segment(step.rows, self.slots + 1, is_whole and geometry.window is None)
        out, _ = self._attend(q, [segment], step, geometry)
        statistic = None if self.statistic is None else self.statistic[step.rows, :, waiting]
        self._evict([segment], k, v, step, statistic)
        return out

    def _attend(
        self, q: Tensor, segments: list[Segment], step: Step, geometry: Geometry
    ) -> tuple[Tensor, list[Tensor]]:
        """Attend, and add to the statistic of the slots, which are the first segment, what they received."""
        num_queries = q.shape[2]
        measure = self._measure(step, num_queries)
        out, received = self.kernels.attend(q, step.pos[:, -num_queries:], segments, geometry, measure)
        if self.statistic is not None:
            held = self.statistic[step.rows, :, : received[0].shape[-1]]
            if step.retention is not None:
                held *= step.retention
            held += received[0]
        return out, received

    def _measure(self, step: Step, num_queries: int) -> Measure | None:
        if self.statistic is None:
            return None
        weight, policy = step.weight[:, -num_queries:], self.policy
        return Measure(policy.statistic, weight, policy.heads, self._noise, policy.observed)

    @property
    def _decodes_in_place(self) -> bool:
        """Whether one kernel attends, adds to the statistic and evicts; a mean over the layer needs all its heads."""
        return self.kernels.slots is not None and (self.statistic is None or self.policy.heads != "layer")

    def _attend_in_place(
        self, q: Tensor, step: Step, geometry: Geometry, extent: int, ranking: Ranking | None
    ) -> Tensor:
        """What `_attend` and, with a ranking, `_evict` do, for one token per row."""
        assert self.kernels.slots is not None
        measure, held = self._measure(step, 1), self._held(step.rows)
        pos = step.pos[:, -1:]
        return self.kernels.slots.decode(q, pos, held, extent, geometry, measure, step.retention, ranking)

    def _held(self, rows: slice) -> Held:
        k, v = self.store.view(rows, self.slots + 1)
        statistic = None if self.statistic is None else self.statistic[rows]
        return Held(k, v, self.pos[rows], self.rot[rows], statistic)

    def _segment(self, rows: slice, extent: int, is_whole: bool) -> Segment:
        return Segment(*self.store.view(rows, extent), self.pos[rows, :, :extent], is_whole)

    def _evict(self, segments: list[Segment], k: Vectors, v: Vectors, step: Step, new_statistic: Tensor | None) -> None:
        """Keep the best S of the S slots and the T new tokens, which come after them in `segments`."""
        candidates = self._candidates(segments, step, new_statistic)
        held, new = slice(self.slots), slice(self.slots, None)
        priority, pos = self._priority(candidates, step), candidates.pos
        if segments[0].is_whole:  # the newest token is never the victim
            index = victim(priority[..., held], pos[..., held])[1]
        else:
            priority = priority.masked_fill(pos < 0, -torch.inf)
            index = evict(priority[..., held], pos[..., held], priority[..., new], pos[..., new])
        # What waits in the discard slot is overwritten by what is dropped, so it is copied first.
        self._write(step.rows, index, k, v, step, None if new_statistic is None else new_statistic.clone())

    def _candidates(self, segments: list[Segment], step: Step, new_statistic: Tensor | None) -> Candidates:
        """What the policy may know of slots and new tokens together."""
        pos = _joined([segment.pos.expand(-1, self.shape.kv_heads, -1) for segment in segments])
        known = value_norm = None
        if self.statistic is not None:
            assert new_statistic is not None
            held = self.statistic[step.rows]
            known = held if len(segments) == 1 else torch.cat([held[..., : self.slots], new_statistic], -1)
        elif self.policy.statistic is Statistic.SIMILARITY:
            known = _joined(similarity([s.k for s in segments], [s.pos for s in segments]))
        if self.policy.needs_value_norm:
            value_norm = _joined([norms(segment.v) for segment in segments])
        return Candidates(pos, step.pos[:, -1:, None] + 1, known, value_norm)  # padding is on the left

    def _priority(self, candidates: Candidates, step: Step) -> Tensor:
        """The policy's score under the protections: +inf is kept."""
        pos, next_pos = candidates.pos, candidates.next_pos
        score = self.policy.score(candidates)
        protected = pos >= next_pos - self.recent
        if self.shape.window is not None:
            expired = pos <= next_pos - self.shape.window
            score = score.masked_fill(expired, torch.finfo(score.dtype).min)
        else:
            protected = protected | (pos < self.policy.sinks)
            if step.pins is not None:
                start, end = step.pins[:, None, None].unbind(-1)  # [n, 1, 1, P]
                protected |= ((pos[..., None] >= start) & (pos[..., None] < end)).any(-1)
        return score.masked_fill(protected, torch.inf)

    def _write(
        self,
        rows: slice,
        index: Tensor | slice,
        k: Vectors,
        v: Vectors,
        step: Step,
        statistic: Tensor | None = None,
    ) -> None:
        """Put the new tokens into the slots `index` of each head; the statistic of a free slot is 0 until given."""
        num_new = k.shape[2]
        if self.kernels.slots is not None:
            assert isinstance(k, Tensor) and isinstance(v, Tensor)
            new = Arriving(k, v, step.pos[:, -num_new:], step.rot[:, -num_new:], statistic)
            self.kernels.slots.insert(self._held(rows), new, index)
            return
        if not isinstance(index, slice):
            index = (index + self._starts[rows]).flatten()
        self.store.write(rows, index, k, v)
        put(self.pos, rows, index, step.pos[:, None, -num_new:])
        put(self.rot, rows, index, step.rot[:, None, -num_new:])
        if self.statistic is not None and statistic is not None:
            put(self.statistic, rows, index, statistic)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
