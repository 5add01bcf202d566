"""All layers' slots of all rows: allocation, what is live, where the next tokens go, snapshots. One reset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvlite.cache.group import PartGroup, most_pinned, try_out
from kvlite.cache.layer import Layer, parted
from kvlite.cache.observing import echo_of, observe
from kvlite.cache.part import LayerHeads, Part
from kvlite.cache.policy import Policy
from kvlite.cache.step import SlotMapping, Step, Turns
from kvlite.errors import UsageError
from kvlite.memory.allotment import of_layers
from kvlite.memory.counts import KVCounts
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import CachePlan, slots_with, stages
from kvlite.memory.shape import LayerShape, ModelShape
from kvlite_kernels.backend import Backend, KernelsUnavailable, LayerSizes
from kvlite_kernels.choice import choose_backend
from kvlite_kernels.statistic import Observation

_MOST_SLOTS = 2**31 - 1  # positions are int32


def open_backend(
    shape: ModelShape, plan: CachePlan, stored: SlotFormat, wanted: str, dtype: torch.dtype, device: torch.device
) -> Backend:
    """The backend of such a cache for queries of `dtype`. Raises UsageError where `wanted` cannot run."""
    layers = [
        LayerSizes(shape.query_heads, layer.kv_heads, max(heads) + 1, layer.k_dim, layer.v_dim)
        for layer, heads in zip(shape.layers, plan.head_slots, strict=True)
        if layer.kv_heads
    ]
    dtypes = [dtype] if stored.is_quantised else [dtype, getattr(torch, stored.name)]
    try:
        return choose_backend(wanted, layers, plan.rows, dtypes, device)
    except KernelsUnavailable as error:
        raise refused_kernels(wanted, error) from error


def refused_kernels(wanted: str, why: KernelsUnavailable) -> UsageError:
    """The user's error where kernels cannot run."""
    return UsageError(f"--kernels {wanted}: {why}; give --kernels auto or torch")


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The live slots of one row on the host, compact: per part and tensor name [H_KV, live, ...]; `live` by slots."""

    live: dict[int, int]
    parts: list[dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.parts for tensor in tensors.values())


class SlotCache:
    """`plan.rows` rows of slots for every attention layer of a model, as planned to the byte.

    `kernels` is one of `kvlite_kernels.choice.KERNELS`, for queries of `dtype`; UsageError where they cannot run, or
    where a plug-in does not score.
    Nothing is evicted while a slot is free, so how many tokens a head holds is known on the host: heads with the same
    number of slots, of whatever layer, share one count per row.
    """

    def __init__(
        self,
        shape: ModelShape,
        plan: CachePlan,
        policy: Policy,
        stored: SlotFormat,
        device: torch.device,
        kernels: str = "torch",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.plan = plan
        self.policy = policy
        self.stored = stored
        self.device = device
        try_out(policy, shape, plan, stored)
        self.backend = open_backend(shape, plan, stored, kernels, dtype, device)
        alike: dict[tuple[LayerShape, int], list[LayerHeads]] = {}
        for index, (layer, head_slots) in enumerate(zip(shape.layers, plan.head_slots, strict=True)):
            for numbers in parted(head_slots, policy.noise is not None):
                key = replace(layer, kv_heads=0, state_bytes=0), head_slots[numbers[0]]
                alike.setdefault(key, []).append(LayerHeads(index, numbers))
        self._groups = [
            PartGroup(members, part, slots, plan, stored, policy, self.backend, device)
            for (part, slots), members in alike.items()
        ]
        every = (part for group in self._groups for part in group.parts)
        self.parts: list[Part] = sorted(every, key=lambda part: (part.heads.layer, part.heads.numbers))
        """The parts of all layers, in their order."""
        self.layers = {
            index: Layer(index, layer, [part for part in self.parts if part.heads.layer == index])
            for index, layer in enumerate(shape.layers)
            if layer.kv_heads
        }
        self._live = {part.num_slots: [0] * plan.rows for part in self.parts}
        self._gaps = set[int]()  # rows that were restored without some tokens of sliding layers
        self._of_one: dict[int, Observation | None] = {}
        self.num_bytes = sum(part.num_bytes for part in self.parts)
        """Bytes reserved for K, V, positions and policy state, measured on the tensors, which never change."""

    def bytes_for(self, wanted: int) -> int:
        """Bytes all rows would reserve where every full layer has `wanted` slots per head, or a few more."""
        shapes, rule = [layer.shape for layer in self.layers.values()], self.policy.layer_slots
        slots = of_layers(shapes, slots_with(shapes, wanted, _MOST_SLOTS, rule), _MOST_SLOTS, rule)
        heads = sum(layer.slot_bytes * (count + 1) for layer, count in zip(self.layers.values(), slots, strict=True))
        return heads * self.plan.rows + self.plan.state_bytes

    def tensors(self) -> list[Tensor]:
        """Every tensor of the cache; their addresses never change."""
        return [tensor for part in self.parts for tensor in part.tensors.values()]

    def live(self, row: int, slots: int) -> int:
        """Count the live slots of a row in each head that has `slots`."""
        return self._live[slots][row]

    def room(self, row: int) -> int:
        """Count the tokens a row still takes before some head would lose one that is visible."""
        free = [
            part.num_slots - self._live[part.num_slots][row]
            for part in self.parts
            if part.shape.window is None or part.num_slots < part.shape.window
        ]
        return min(free, default=2**62)

    def free(self, row: int) -> int:
        """Count the tokens a row still takes before any head loses one, be it out of sight."""
        return min((slots - live[row] for slots, live in self._live.items()), default=2**62)

    def begin(
        self,
        rows: slice,
        pos: Tensor,
        rot: Tensor,
        counts: Sequence[int],
        pins: Tensor | None,
        to_come: Sequence[int] = (),
        *,
        echoes: Sequence[bool] = (),
    ) -> Step:
        """The step that feeds `counts[i]` real tokens (right-aligned in pos and rot int32 [n, T]) to each of `rows`.

        Of row i `to_come[i]` tokens more will follow: where they have room, the statistic is for the time after them.
        Of a row that `echoes` the policy that asks for that learns from an echo of its tokens.
        """
        mappings = self._mappings(rows, pos, counts)
        step = self.mapped(rows, pos, rot, counts, pins, mappings)
        if any(echoes):
            heard = [count * is_heard for count, is_heard in zip(counts, echoes, strict=True)]
            return replace(step, echo=echo_of(pos, heard))
        if not any(to_come):
            return step
        room = (self.room(row) for row in range(rows.start, rows.stop))
        fits = [more * (count + more <= free) for more, count, free in zip(to_come, counts, room, strict=True)]
        return replace(step, observation=observe(self.policy, pos, fits))

    def begin_turns(self, row: int, pos: Tensor, rot: Tensor, pins: Tensor | None) -> Step:
        """The step that feeds T tokens to a row, each as if it were decoded alone; `free` slots hold them all.

        Its forward pass records nothing: `keep_next` does as each turns out to be right, and then `drop_rest`.
        """
        rows, counts = slice(row, row + 1), (pos.shape[1],)
        step = self.mapped(rows, pos, rot, counts, pins, self._mappings(rows, pos, counts))
        return replace(step, observation=self._observation(pos[:, :1], (1,)), turns=Turns())

    def keep_next(self, step: Step, number: int) -> None:
        """Record that token `number` of a step of `begin_turns` came to its row, as those before it did."""
        assert step.turns is not None
        for received in step.turns.received:
            received.add(number)
        self.grow(step.rows, (1,))

    def drop_rest(self, step: Step, count: int) -> None:
        """Free the slots of all but the first `count` tokens of a step of `begin_turns`, which were kept."""
        for group in self._groups:
            index = step.mappings[group.slots.num_slots].index
            assert isinstance(index, slice)
            group.clear(step.rows, slice(index.start + count, index.stop))

    def again(self, rows: slice, pos: Tensor, rot: Tensor, behind: int) -> Step:
        """The step that feeds a row some of its tokens once more, `behind` tokens after the first of them.

        Slots keep all but what is known of these tokens, and of those that came after them.
        """
        mappings = {slots: SlotMapping(max(1, *live[rows]), slice(0, 0)) for slots, live in self._live.items()}
        echo = echo_of(pos, [pos.shape[1]], behind)
        return Step(rows, pos, rot, (0,), None, None, mappings, echo, is_again=True)

    def mapped(
        self,
        rows: slice,
        pos: Tensor,
        rot: Tensor,
        counts: Sequence[int],
        pins: Tensor | None,
        mappings: dict[int, SlotMapping],
    ) -> Step:
        """The step of `begin` where the slot mappings are known; asks nothing of the device."""
        step = Step(rows, pos, rot, tuple(counts), self._observation(pos, counts), pins, mappings)
        for group in self._groups:
            group.place(step)
        return step

    def end(self, step: Step) -> None:
        """Evict for the tokens that wait, and record what `step` added, after the forward pass."""
        if step.turns is None:
            for group in self._groups:
                group.evict(step)
            self.grow(step.rows, step.counts)

    def grow(self, rows: slice, counts: Sequence[int]) -> None:
        """Record that `counts[i]` tokens came to each of `rows`."""
        for slots, live in self._live.items():
            live[rows] = [min(slots, held + count) for held, count in zip(live[rows], counts, strict=True)]

    def reset(self, row: int) -> None:
        """Leave nothing of a row's conversation."""
        for part in self.parts:
            part.reset(row, self._live[part.num_slots][row])
        for live in self._live.values():
            live[row] = 0
        self._gaps.discard(row)

    def rerotate(self, row: int) -> int:
        """Move the rotations of a row's keys to just below the returned position, which the next token takes."""
        end = max(live[row] for live in self._live.values())
        for part in self.parts:
            rotation, live = self.layers[part.heads.layer].rotation, self._live[part.num_slots][row]
            if rotation is not None and live:
                part.rerotate(row, live, end, rotation)
        return end

    def snapshot(self, row: int) -> CacheSnapshot:
        """Copy a row's live slots to the host."""
        live = {slots: counts[row] for slots, counts in self._live.items()}
        parts = [
            {name: tensor[row, :, : live[part.num_slots]].to("cpu", copy=True) for name, tensor in part.tensors.items()}
            for part in self.parts
        ]
        return CacheSnapshot(live, parts)

    def restore(self, row: int, snapshot: CacheSnapshot) -> None:
        """Put a snapshot of a cache of the same shape back into a row, compacted to the first slots."""
        self.reset(row)
        for part, held in zip(self.parts, snapshot.parts, strict=True):
            for name, tensor in part.tensors.items():
                tensor[row, :, : held[name].shape[1]].copy_(held[name])
        for slots, counts in self._live.items():
            counts[row] = snapshot.live[slots]
        windows = (held["pos"] for part, held in zip(self.parts, snapshot.parts, strict=True) if part.shape.window)
        if any((pos.amax(-1) - pos.amin(-1) >= pos.shape[-1]).any() for pos in windows if pos.numel()):
            self._gaps.add(row)

    def live_bytes(self, row: int) -> int:
        """Live slots times slot bytes of a row."""
        return sum(part.slot_bytes * self._live[part.num_slots][row] for part in self.parts)

    def heads_with_room(self, row: int, pins: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Count the KV heads of full-attention layers that keep all they hold of these spans, and all of them.

        Those that will not once the row has grown do not count.
        """
        last, keeping = stages(self.plan)[-1], 0
        full = [part for part in self.parts if part.shape.window is None]
        for part in full:
            pos = part.slots.pos[row, :, : self.live(row, part.num_slots)]
            held = torch.zeros_like(pos, dtype=torch.bool)
            for start, end in pins:
                held |= (pos >= max(start, self.policy.sinks)) & (pos < end)
            for head, count in zip(part.heads.numbers, held.sum(-1).tolist(), strict=True):
                most = most_pinned(self.policy, last.head_slots[part.heads.layer][head], last)
                keeping += most is None or count <= most
        return keeping, sum(part.shape.kv_heads for part in full)

    def tokens_kept(self, row: int) -> int:
        """The mean of live slots over the KV heads of full-attention layers (of all where none is full), rounded down.

        So a row that lost any token of any head never counts as whole.
        """
        full = [part for part in self.parts if part.shape.window is None] or self.parts
        heads = sum(part.shape.kv_heads for part in full)
        live = sum(part.shape.kv_heads * self._live[part.num_slots][row] for part in full)
        return live // heads if heads else 0

    def counts(self, row: int, seen: int, peak_bytes: int, state_bytes: int = 0) -> KVCounts:
        """A row's counts, given the tokens it has seen, its peak, and the model's constant state beside the slots."""
        kept = self.tokens_kept(row)
        heads = [(part, part.shape.kv_heads) for part in self.parts if part.shape.window is None]
        return KVCounts(
            budget_bytes=self.plan.row_budget_bytes,
            reserved_bytes=self.num_bytes // self.plan.rows + state_bytes,
            live_bytes=self.live_bytes(row),
            peak_bytes=peak_bytes,
            tokens_seen=seen,
            tokens_kept=kept,
            tokens_evicted=seen - kept,
            policy=str(self.policy),
            dtype=self.stored.name,
            full_heads=sum(count for part, count in heads if self.live(row, part.num_slots) == part.num_slots),
            heads=sum(count for _, count in heads),
        )

    def _mappings(self, rows: slice, pos: Tensor, counts: Sequence[int]) -> dict[int, SlotMapping]:
        """The slots of the new tokens, by number of slots; where rows differ, their starts go to the device at once."""
        width = pos.shape[1]
        found = {slots: self._aligned(slots, live[rows], counts, width) for slots, live in self._live.items()}
        if self._gaps.intersection(range(rows.start, rows.stop)):
            found = {slots: mapping and replace(mapping, has_gaps=True) for slots, mapping in found.items()}
        ragged = [slots for slots, mapping in found.items() if mapping is None]
        if ragged:
            firsts = [
                [held + count - width for held, count in zip(self._live[slots][rows], counts, strict=True)]
                for slots in ragged
            ]  # of padding, which is on the left, if there is any
            column = torch.arange(width, device=self.device)
            for slots, first in zip(ragged, torch.tensor(firsts, device=self.device)[..., None], strict=True):
                index = torch.where(pos >= 0, first + column, slots)
                longest = max(held + count for held, count in zip(self._live[slots][rows], counts, strict=True))
                found[slots] = SlotMapping(max(1, longest), index[:, None])
        return {slots: mapping for slots, mapping in found.items() if mapping is not None}

    def _aligned(self, slots: int, live: Sequence[int], counts: Sequence[int], num_tokens: int) -> SlotMapping | None:
        """The mapping where it needs no numbers on the device; None where the rows hold differently many tokens."""
        longest = max(held + count for held, count in zip(live, counts, strict=True))
        is_aligned = len(set(live)) == 1 and min(counts) == num_tokens
        if longest > slots:
            if num_tokens > 1:
                return SlotMapping(slots, None, before=live[0] if is_aligned else None)
            return waiting(slots, all_visible=is_aligned and live[0] == slots)
        if is_aligned:
            before = live[0] + (num_tokens == 1)  # one token sees itself too
            return SlotMapping(max(1, longest), slice(live[0], live[0] + num_tokens), before=before)
        return None

    def _observation(self, pos: Tensor, counts: Sequence[int]) -> Observation | None:
        """The observation of the tokens at `pos`; made once for one token in each row."""
        if pos.shape[1] > 1 or min(counts) == 0:
            return observe(self.policy, pos)
        if len(counts) not in self._of_one:
            self._of_one[len(counts)] = observe(self.policy, torch.zeros_like(pos))
        return self._of_one[len(counts)]


def waiting(slots: int, all_visible: bool = False) -> SlotMapping:
    """The mapping of one token per row that waits in the discard slot of layers with `slots` slots."""
    return SlotMapping(slots + 1, slice(slots, slots + 1), evicts=True, before=slots + 1 if all_visible else None)
