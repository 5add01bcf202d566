"""All layers' slots of all rows: allocation, what is live, where the next tokens go, snapshots. One reset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.cache.group import SlotGroup
from kvlite.cache.layer import LayerSlots
from kvlite.cache.lowbit import LowBitStore
from kvlite.cache.policy import Policy
from kvlite.cache.slots import Slots
from kvlite.cache.step import Placement, Step
from kvlite.cache.store import DenseStore, SlotStore
from kvlite.errors import UsageError
from kvlite.memory.counts import KVCounts
from kvlite.memory.format import SlotFormat
from kvlite.memory.layer_budgets import allotted
from kvlite.memory.plan import CachePlan, slots_with
from kvlite.memory.shape import LayerShape, ModelShape
from kvlite_kernels.choice import TORCH, KernelSet, KernelsUnavailable, LayerSizes, choose

EXTENT_STEP = 256
"""Attention reads the live slots rounded up to this many, so that shapes change rarely."""

_MOST_SLOTS = 2**31 - 1  # positions are int32


def open_store(
    stored: SlotFormat, layer: LayerShape, rows: int, slots: int, device: torch.device, kernels: KernelSet = TORCH
) -> SlotStore:
    """Empty slots of layers of one shape that hold keys and values as `stored` says."""
    if stored.is_coded:
        return LowBitStore.zeros(layer, rows, slots, stored, device, kernels.quantise)
    return DenseStore.zeros(layer, rows, slots, getattr(torch, stored.name), device)


def choose_kernels(
    shape: ModelShape, plan: CachePlan, stored: SlotFormat, wanted: str, dtype: torch.dtype, device: torch.device
) -> KernelSet:
    """The kernels for such a cache and queries of `dtype`. Raises UsageError where `wanted` cannot run."""
    layers = [
        LayerSizes(shape.query_heads, layer.kv_heads, slots + 1, layer.k_dim, layer.v_dim)
        for layer, slots in zip(shape.layers, plan.layer_slots, strict=True)
        if layer.kv_heads
    ]
    dtypes = [dtype] if stored.is_coded else [dtype, getattr(torch, stored.name)]
    try:
        return choose(wanted, layers, plan.rows, dtypes, device)
    except KernelsUnavailable as error:
        raise refused_kernels(wanted, error) from error


def refused_kernels(wanted: str, why: KernelsUnavailable) -> UsageError:
    """What the user is told of kernels that cannot run."""
    return UsageError(f"--kernels {wanted}: {why}; give --kernels auto or torch")


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The live slots of one row on the host, compact: per layer and tensor name [H_KV, live, ...]."""

    live: dict[int, int]
    layers: dict[int, dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.layers.values() for tensor in tensors.values())


class SlotCache:
    """`plan.rows` rows of slots for every attention layer of a model, as planned to the byte.

    `kernels` is one of `kvlite_kernels.choice.KERNELS`, for queries of `dtype`; UsageError where they cannot run.
    Nothing is evicted while a slot is free, so all heads of a layer hold equally many tokens and how many is known on
    the host: layers with the same number of slots share one count per row.
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
        self.kernels = choose_kernels(shape, plan, stored, kernels, dtype, device)
        alike: dict[tuple[LayerShape, int], list[int]] = {}
        for index, (layer, slots) in enumerate(zip(shape.layers, plan.layer_slots, strict=True)):
            if layer.kv_heads:
                alike.setdefault((layer, slots), []).append(index)
        self._groups = [self._group(layer, slots, indices) for (layer, slots), indices in alike.items()]
        layers = {index: layer for group in self._groups for index, layer in group.layers.items()}
        self.layers = dict(sorted(layers.items()))
        self._live = {layer.slots: [0] * plan.rows for layer in self.layers.values()}
        self._of_one: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.num_bytes = sum(layer.num_bytes for layer in self.layers.values())
        """Bytes reserved for K, V, positions and policy state, measured on the tensors, which never change."""

    def _group(self, layer: LayerShape, slots: int, indices: Sequence[int]) -> SlotGroup:
        rows = self.plan.rows
        store = open_store(self.stored, layer, rows * len(indices), slots + 1, self.device, self.kernels)
        keeps_order = self.plan.keeps_order
        held = Slots.empty(layer, slots, self.policy, self.kernels, store, rows * len(indices), keeps_order)
        return SlotGroup(indices, held, rows)

    def bytes_for(self, wanted: int) -> int:
        """Bytes all rows would reserve where every full layer has `wanted` slots per head, or a few more."""
        shapes, rule = [layer.shape for layer in self.layers.values()], self.policy.layer_slots
        slots = allotted(shapes, slots_with(shapes, wanted, _MOST_SLOTS, rule), _MOST_SLOTS, rule)
        heads = sum(layer.slot_bytes * (count + 1) for layer, count in zip(self.layers.values(), slots, strict=True))
        return heads * self.plan.rows + self.plan.state_bytes

    def tensors(self) -> list[Tensor]:
        """Every tensor of the cache; their addresses never change."""
        return [tensor for layer in self.layers.values() for tensor in layer.tensors.values()]

    def live(self, row: int, slots: int) -> int:
        """How many slots per head of a row are live in the layers that have `slots`."""
        return self._live[slots][row]

    def room(self, row: int) -> int:
        """How many more tokens a row takes before some layer would lose a token that is still visible."""
        bounded = [layer for layer in self.layers.values() if not _outlives_window(layer)]
        return min((layer.slots - self._live[layer.slots][row] for layer in bounded), default=2**62)

    def begin(self, rows: slice, pos: Tensor, rot: Tensor, counts: Sequence[int], pins: Tensor | None) -> Step:
        """The step that feeds `counts[i]` real tokens (right-aligned in pos and rot int32 [n, T]) to each of `rows`."""
        placements = {slots: self._place(slots, live[rows], counts, pos.shape[1]) for slots, live in self._live.items()}
        return self.placed(rows, pos, rot, counts, pins, placements)

    def placed(
        self,
        rows: slice,
        pos: Tensor,
        rot: Tensor,
        counts: Sequence[int],
        pins: Tensor | None,
        placements: dict[int, Placement],
    ) -> Step:
        """The step of `begin` where the tokens' places are known; asks nothing of the device."""
        weight, retention = self._counted(pos, counts)
        step = Step(rows, pos, rot, weight, retention, tuple(counts), pins, placements)
        for group in self._groups:
            group.begin(step)
        return step

    def end(self, step: Step) -> None:
        """Evict for the tokens that wait, and record what `step` added, after the forward pass."""
        for group in self._groups:
            group.end(step)
        self.grow(step.rows, step.counts)

    def grow(self, rows: slice, counts: Sequence[int]) -> None:
        """Record that `counts[i]` tokens came to each of `rows`."""
        for slots, live in self._live.items():
            live[rows] = [min(slots, held + count) for held, count in zip(live[rows], counts, strict=True)]

    def reset(self, row: int) -> None:
        """Leave nothing of a row's conversation."""
        for layer in self.layers.values():
            layer.reset(row, self._live[layer.slots][row])
        for live in self._live.values():
            live[row] = 0

    def rerotate(self, row: int) -> int:
        """Move the rotations of a row's keys to just below the returned position, which the next token takes."""
        end = max(live[row] for live in self._live.values())
        for layer in self.layers.values():
            layer.rerotate(row, self._live[layer.slots][row], end)
        return end

    def snapshot(self, row: int) -> CacheSnapshot:
        """Copy a row's live slots to the host."""
        live = {slots: counts[row] for slots, counts in self._live.items()}
        layers = {
            index: {name: tensor[row, :, : live[layer.slots]].to("cpu", copy=True) for name, tensor in _named(layer)}
            for index, layer in self.layers.items()
        }
        return CacheSnapshot(live, layers)

    def restore(self, row: int, snapshot: CacheSnapshot) -> None:
        """Put a snapshot of a cache of the same shape back into a row, compacted to the first slots."""
        self.reset(row)
        for index, layer in self.layers.items():
            for name, tensor in _named(layer):
                saved = snapshot.layers[index][name]
                tensor[row, :, : saved.shape[1]].copy_(saved)
        for slots, counts in self._live.items():
            counts[row] = snapshot.live[slots]

    def live_bytes(self, row: int) -> int:
        """Live slots times slot bytes of a row."""
        return sum(layer.slot_bytes * self._live[layer.slots][row] for layer in self.layers.values())

    def tokens_kept(self, row: int) -> int:
        """The mean of live slots over the KV heads of full-attention layers (of all layers where none is full)."""
        full = [layer for layer in self.layers.values() if layer.shape.window is None] or list(self.layers.values())
        heads = sum(layer.shape.kv_heads for layer in full)
        return sum(layer.shape.kv_heads * self._live[layer.slots][row] for layer in full) // heads if heads else 0

    def counts(self, row: int, seen: int, peak_bytes: int, state_bytes: int = 0) -> KVCounts:
        """A row's counts, given the tokens it has seen, its peak, and the model's constant state beside the slots."""
        kept = self.tokens_kept(row)
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
        )

    def _place(self, slots: int, live: Sequence[int], counts: Sequence[int], num_tokens: int) -> Placement:
        longest = max(held + count for held, count in zip(live, counts, strict=True))
        is_step = num_tokens == 1 and min(counts) == 1
        if longest > slots:
            return Placement(slots, None, is_step and min(live) == slots)
        if len(set(live)) == 1 and min(counts) == num_tokens:
            extent = self._extent(longest, slots)
            return Placement(extent, slice(live[0], live[0] + num_tokens), is_step and extent == longest)
        column = torch.arange(num_tokens, device=self.device)
        first = torch.tensor([num_tokens - count for count in counts], device=self.device)[:, None]
        start = torch.tensor(live, device=self.device)[:, None]
        index = torch.where(column >= first, start + column - first, slots)
        return Placement(self._extent(longest, slots), index[:, None])

    def _extent(self, live: int, slots: int) -> int:
        step = 1 if self.device.type == "cpu" else EXTENT_STEP  # nothing is compiled for a shape there
        return min(slots, max(1, -(-live // step)) * step)

    def _counted(self, pos: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What the tokens at `pos` weigh and what stays of the statistic; made once for one token in each row."""
        if pos.shape[1] > 1 or min(counts) == 0:
            return self._weight(pos), self._retention(pos)
        if len(counts) not in self._of_one:
            held = torch.zeros_like(pos)
            self._of_one[len(counts)] = self._weight(held), self._retention(held)
        return self._of_one[len(counts)]

    def _weight(self, pos: Tensor) -> Tensor:
        """1 for a query, less by the policy's decay for each that follows it, 0 for padding and where it is too old."""
        weight = (pos >= 0).float()
        if pos.shape[1] == 1 or (self.policy.decay == 1.0 and self.policy.observed is None):
            return weight
        following = torch.arange(pos.shape[1] - 1, -1, -1, device=pos.device)
        if self.policy.decay != 1.0:
            weight *= self.policy.decay**following
        if self.policy.observed is not None:
            weight *= following < self.policy.observed
        return weight

    def _retention(self, pos: Tensor) -> Tensor | None:
        """What stays of the statistic held when the real tokens of `pos` are seen; None where that is all of it."""
        if self.policy.decay == 1.0 and self.policy.observed is None:
            return None
        seen = (pos >= 0).sum(-1).float()
        share = self.policy.decay**seen
        if self.policy.observed is not None:
            share = share * (1.0 - seen / self.policy.observed).clamp(min=0.0)
        return share[:, None, None]


def _outlives_window(layer: LayerSlots) -> bool:
    return layer.shape.window is not None and layer.slots >= layer.shape.window


def _named(layer: LayerSlots) -> list[tuple[str, Tensor]]:
    return list(layer.saved.items())
