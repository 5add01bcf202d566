"""Slots: tensors allocated once, overwritten in place. Knows nothing of models, attention, text or requests.

Slot i of two heads holds different tokens; `pos` says which, and order means nothing. Behind the S slots of each head
lies one more, the discard slot: a scatter sends there what is not kept, so that shapes never depend on data, and a
decoded token waits there while a victim is chosen. It is counted in the budget as staging.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvlite.cache.policy import Candidates, Policy
from kvlite.cache.step import Step
from kvlite.cache.store import SlotStore, put
from kvlite.memory.shape import LayerShape
from kvlite_kernels.choice import KernelSet
from kvlite_kernels.features import norms, similarity
from kvlite_kernels.kinds import Statistic
from kvlite_kernels.reference import Segment, Vectors, evict, victim
from kvlite_kernels.slots import Arriving, Held, Ranking


class Slots:
    """`slots` slots and the discard slot for B rows of layers of one shape: the store's tensors, and pos, rot (int32)
    and, where the policy accumulates one, statistic (fp32) [B, H_KV, S + 1].

    `order` int32 of the same shape is where kernels that rank by neighbours keep the order of slots by position. It
    follows from `pos`, and they see for themselves whether it still does.

    Sliding layers see `window` positions back: expired tokens go first there, and sinks and pins are not kept.
    """

    def __init__(
        self,
        shape: LayerShape,
        slots: int,
        policy: Policy,
        kernels: KernelSet,
        store: SlotStore,
        pos: Tensor,
        rot: Tensor,
        statistic: Tensor | None,
        order: Tensor | None = None,
    ) -> None:
        self.shape = shape
        self.slots = slots
        self.policy = policy
        self.kernels = kernels
        self.store, self.pos, self.rot, self.statistic, self.order = store, pos, rot, statistic, order
        self.recent = max(1, min(policy.recent(slots), slots - 1))
        heads = pos.shape
        self._starts = torch.arange(0, pos.numel(), heads[2], device=pos.device).view(*heads[:2], 1)

    @classmethod
    def empty(
        cls,
        shape: LayerShape,
        slots: int,
        policy: Policy,
        kernels: KernelSet,
        store: SlotStore,
        rows: int,
        keeps_order: bool = False,
    ) -> Slots:
        """Slots without a token over `store`, which has `rows` rows."""
        device = next(iter(store.tensors.values())).device
        heads = (rows, shape.kv_heads, slots + 1)
        pos, rot = (torch.full(heads, -1, dtype=torch.int32, device=device) for _ in range(2))
        statistic = torch.zeros(heads, dtype=torch.float32, device=device) if policy.statistic.accumulates else None
        numbers = torch.arange(slots + 1, dtype=torch.int32, device=device)
        order = numbers.expand(heads).contiguous() if keeps_order else None
        return cls(shape, slots, policy, kernels, store, pos, rot, statistic, order)

    def part(self, rows: slice) -> Slots:
        """The slots of some of the rows, in the same memory."""
        statistic = None if self.statistic is None else self.statistic[rows]
        order = None if self.order is None else self.order[rows]
        store, pos, rot = self.store.part(rows), self.pos[rows], self.rot[rows]
        return Slots(self.shape, self.slots, self.policy, self.kernels, store, pos, rot, statistic, order)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; their first three dimensions are B, H_KV, S + 1."""
        return self.saved if self.order is None else {**self.saved, "order": self.order}

    @property
    def saved(self) -> dict[str, Tensor]:
        """The tensors that say what is held, by name; what is not among them follows from these."""
        held = {**self.store.tensors, "pos": self.pos, "rot": self.rot}
        return held if self.statistic is None else {**held, "statistic": self.statistic}

    @property
    def decodes_in_place(self) -> bool:
        """Whether one kernel attends and adds to the statistic; a mean over the layer needs all its heads."""
        return self.kernels.slots is not None and (self.statistic is None or self.policy.heads != "layer")

    @property
    def evicts_in_place(self) -> bool:
        """Whether a decoded token takes its slot in the same kernel; else it waits for `evict_waiting`."""
        return self.decodes_in_place and self.policy.rank is not None and self.policy.rank.pooled == 1

    @property
    def evicts_in_order(self) -> bool:
        """Whether one kernel evicts what waits in all layers; else `evict_waiting` does."""
        return self.kernels.slots is not None and self.order is not None

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
        if self.order is not None:
            self.order[row].copy_(torch.arange(self.slots + 1, device=self.order.device))

    def place(self, step: Step, layers: int = 1) -> None:
        """Say which tokens of `step` come into slots that are known before their keys are: free ones, or the last.

        The same in each of `layers`, one after another, where the slots are the same for all rows.
        """
        index = step.placements[self.slots].index
        if isinstance(index, Tensor):
            index = self._flat(step.rows, index)
            put(self.pos, step.rows, index, step.pos[:, None])
            put(self.rot, step.rows, index, step.rot[:, None])
            return
        start, stop = (self.slots, self.slots + 1) if index is None else (index.start, index.stop)

        def there(held: Tensor) -> Tensor:
            of_layers = held.view(layers, -1, *held.shape[1:])
            return of_layers[:, step.rows].narrow(3, start, stop - start)

        there(self.pos).copy_(step.pos[:, None])
        there(self.rot).copy_(step.rot[:, None])
        if index is None and self.statistic is not None:
            there(self.statistic).zero_()

    def evict_waiting(self, step: Step) -> None:
        """Put the token that waits in the discard slot of each head over a victim, or drop it."""
        rows, waiting = step.rows, slice(self.slots, None)
        k, v = self.store.view(rows, self.slots + 1)
        is_whole = step.placements[self.slots].is_whole and self.shape.window is None
        segment = Segment(k, v, self.pos[rows], is_whole)
        statistic = None if self.statistic is None else self.statistic[rows, :, waiting].clone()
        # Copies, because what waits is overwritten by what is dropped.
        self.evict([segment], k[:, :, waiting].clone(), v[:, :, waiting].clone(), step, statistic)

    def evict_all_waiting(self, step: Step, layers: int) -> None:
        """What `evict_waiting` does, in one kernel for `layers` layers, whose rows lie one layer after another."""
        assert self.kernels.slots is not None
        held, ranking = self.held(slice(0, self.pos.shape[0])), self.ranking(step)
        self.kernels.slots.evict(held, step.rows, layers, step.pos, ranking, self.shape.window)

    def evict(self, segments: list[Segment], k: Vectors, v: Vectors, step: Step, new_statistic: Tensor | None) -> None:
        """Keep the best S of the S slots and the T new tokens, which come after them in `segments`."""
        candidates = self._candidates(segments, step, new_statistic)
        held, new = slice(self.slots), slice(self.slots, None)
        priority, pos = self._priority(candidates, step), candidates.pos
        if segments[0].is_whole:  # the newest token is never the victim
            index = victim(priority[..., held], pos[..., held])[1]
        else:
            priority = priority.masked_fill(pos < 0, -torch.inf)
            index = evict(priority[..., held], pos[..., held], priority[..., new], pos[..., new])
        self.write(step.rows, index, k, v, step, new_statistic)

    def write(
        self, rows: slice, index: Tensor | slice, k: Vectors, v: Vectors, step: Step, statistic: Tensor | None = None
    ) -> None:
        """Put new tokens into the slots `index` of each head; the statistic of a free slot is 0 until given.

        Kernels code what they insert; what is coded already is copied.
        """
        num_new = k.shape[2]
        if self.kernels.slots is not None and isinstance(k, Tensor) and isinstance(v, Tensor):
            new = Arriving(k, v, step.pos[:, -num_new:], step.rot[:, -num_new:], statistic)
            self.kernels.slots.insert(self.held(rows), new, index)
            return
        index = self._flat(rows, index)
        self.store.write(rows, index, k, v)
        put(self.pos, rows, index, step.pos[:, None, -num_new:])
        put(self.rot, rows, index, step.rot[:, None, -num_new:])
        if self.statistic is not None and statistic is not None:
            put(self.statistic, rows, index, statistic)

    def write_placed(self, rows: slice, index: Tensor | slice, k: Vectors, v: Vectors) -> None:
        """Put the keys and values of tokens that were placed into their slots."""
        self.store.write(rows, self._flat(rows, index), k, v)

    def held(self, rows: slice) -> Held:
        """The tensors of some rows, as kernels take them."""
        k, v = self.store.view(rows, self.slots + 1)
        statistic = None if self.statistic is None else self.statistic[rows]
        order = None if self.order is None else self.order[rows]
        return Held(k, v, self.pos[rows], self.rot[rows], statistic, order)

    def ranking(self, step: Step) -> Ranking:
        """How kernels rank what `step` leaves."""
        assert self.policy.rank is not None
        return Ranking(self.policy.rank, self.recent, self.policy.sinks, self.slots, step.pins)

    def _flat(self, rows: slice, index: Tensor | slice) -> Tensor | slice:
        """`index` [n, H_KV or 1, T] as which slot of all, as `put` takes it."""
        return index if isinstance(index, slice) else (index + self._starts[rows]).flatten()

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


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
