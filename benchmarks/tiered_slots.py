"""Two tiers of slots, simulated: the best of each head are exact, the others hold what four bits give back.

Slots hold float32 with the values that either tier would give; bytes are counted as the tiers would take them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from kvlite.cache.policy import Candidates
from kvlite.cache.slots import LayerSlots
from kvlite.cache.step import Step
from kvlite.cache.store import DenseStore
from kvlite.engine.engine import Engine
from kvlite.evaluation.variant import Placed, Variant
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS, SlotFormat
from kvlite.memory.plan import largest, most_slots
from kvlite.memory.shape import LayerShape, ModelShape
from kvlite.models.loaded import LoadedModel
from kvlite_kernels.lowbit import hadamard, quantise
from kvlite_kernels.reference import Geometry, Vectors

EXACT, LOW = FORMATS["bfloat16"], FORMATS["int4"]


def as_int4(x: Tensor) -> Tensor:
    """What an int4 slot gives back of x [..., D]."""
    coded = quantise(hadamard(x), LOW.bits, LOW.group(x.shape[-1]))
    return hadamard(coded.to(torch.float32)).to(x.dtype)


class RoundedStore(DenseStore):
    """Float32 slots into which keys and values come as bfloat16 would hold them."""

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Vectors, Vectors]:
        return q, k.bfloat16().to(self.k.dtype), v.bfloat16().to(self.v.dtype)


class TieredSlots(LayerSlots):
    """Slots of which at most `num_exact` per head are exact.

    `coded` int32 [B, H_KV, S + 1] is the position of the token that was rounded in a slot, so that a slot with another
    token is exact again.
    """

    def __init__(self, layer: LayerSlots, num_exact: int) -> None:
        rows, _, slots = layer.pos.shape
        dtype, device = layer.store.tensors["k"].dtype, layer.pos.device
        self.floats = RoundedStore(layer.shape, rows, slots, dtype, device)
        super().__init__(0, layer.shape, layer.slots, rows, layer.policy, self.floats, layer.kernels)
        self.rotation = layer.rotation
        self.num_exact = num_exact
        self.coded = torch.full_like(self.pos, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step, geometry: Geometry) -> Tensor:
        out = super().attend(q, k, v, step, geometry)
        self._demote(step)
        return out

    def reset(self, row: int, live: int) -> None:
        super().reset(row, live)
        self.coded[row].fill_(-1)

    def rerotate(self, row: int, live: int, end: int) -> None:
        """As LayerSlots; a rounded key that turns is rounded once more."""
        before = self.rot[row].clone()
        super().rerotate(row, live, end)
        turned = (self.coded[row] == self.pos[row]) & (self.pos[row] >= 0) & (self.rot[row] != before)
        self.floats.k[row][turned] = as_int4(self.floats.k[row][turned])

    def is_exact(self, rows: slice) -> Tensor:
        """Which slots hold a token that was never rounded: bool [n, H_KV, S]."""
        pos = self.pos[rows, :, : self.slots]
        return (pos >= 0) & (self.coded[rows, :, : self.slots] != pos)

    def _demote(self, step: Step) -> None:
        """Round what is not among the best `num_exact` of the exact slots of the rows that were fed."""
        rows, slots = step.rows, slice(self.slots)
        exact = self.is_exact(rows)
        fed = (step.pos[:, -1] >= 0)[:, None, None]
        best = self._rank(rows, step).masked_fill(~exact, -torch.inf).topk(min(self.num_exact, self.slots), -1).indices
        leaving = exact.scatter(-1, best, False) & fed
        for held in (self.floats.k, self.floats.v):
            view = held[rows, :, slots]
            view[leaving] = as_int4(view[leaving])
        self.coded[rows, :, slots] = torch.where(leaving, self.pos[rows, :, slots], self.coded[rows, :, slots])

    def _rank(self, rows: slice, step: Step) -> Tensor:
        """The policy's score of every slot under the protections of a cache of `num_exact` slots."""
        pos, next_pos = self.pos[rows, :, : self.slots], step.pos[:, -1:, None] + 1
        known = None if self.statistic is None else self.statistic[rows, :, : self.slots]
        norm = self.floats.v[rows, :, : self.slots].norm(dim=-1) if self.policy.needs_value_norm else None
        recent = max(1, min(self.policy.recent(self.num_exact), self.num_exact))
        score = self.policy.score(Candidates(pos, next_pos, known, norm))
        return score.masked_fill((pos >= next_pos - recent) | (pos < self.policy.sinks), torch.inf)


@dataclass(frozen=True, slots=True)
class Tiered(Placed):
    """A variant whose slots are exact up to a `share`; its plan counts the bytes of both tiers."""

    share: Fraction = Fraction(1)

    def open(self, loaded: LoadedModel, rows: int) -> Engine:
        engine = Placed.open(self, loaded, rows)
        for index, layer in engine.cache.layers.items():
            engine.cache.layers[index] = TieredSlots(layer, num_exact(self.share, layer.slots))
        return engine


def num_exact(share: Fraction, slots: int) -> int:
    """How many of `slots` are exact, at least one: a token is exact when it comes."""
    return max(1, round(share * slots))


def tiered(variant: Variant, share: Fraction, shape: ModelShape, budget_bytes: int) -> Tiered:
    """`variant` with as many slots as the budget buys where a share of them is exact."""
    simulated = replace(variant, kv_dtype="float32", budget=Budget(BudgetKind.TOKENS, 2**31 - 1))
    spec = simulated.place(shape, 0, 0).spec

    def cost(stored: SlotFormat, layer: LayerShape) -> int:
        return layer.kv_heads * replace(spec, slot_format=stored).slot_bytes(layer)

    def num_bytes(slots: int) -> int:
        exact = num_exact(share, slots)
        return sum((exact + 1) * cost(EXACT, layer) + (slots - exact) * cost(LOW, layer) for layer in shape.layers)

    slots = largest(lambda count: num_bytes(count) <= budget_bytes, most_slots(shape, spec))
    placed = replace(simulated, budget=Budget(BudgetKind.TOKENS, slots)).place(shape, 0, 0)
    plan = replace(placed.plan, reserved_bytes=num_bytes(slots), budget_bytes=budget_bytes)
    return Tiered(placed.variant, placed.spec, plan, share)
