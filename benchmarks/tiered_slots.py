"""Two tiers of slots, simulated: the best of each head are exact, the others hold what four bits give back.

Slots hold float32 with the values that either tier would give; bytes are counted as the tiers would take them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from kvlite.cache.store import DenseStore
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.layer import LayerSlots
from kvlite.cache.policy import Candidates
from kvlite.cache.step import Step
from kvlite.engine.engine import Engine
from kvlite.evaluation.variant import Placed, Variant
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import FORMATS, SlotFormat
from kvlite.memory.plan import largest, most_slots
from kvlite.memory.shape import LayerShape, ModelShape
from kvlite.models.loaded import LoadedModel
from kvlite_kernels.lowbit import hadamard, quantise
from kvlite_kernels.reference import Vectors

EXACT, LOW = FORMATS["bfloat16"], FORMATS["int4"]


def as_int4(x: Tensor) -> Tensor:
    """What an int4 slot gives back of x [..., D]."""
    coded = quantise(hadamard(x), LOW.bits, LOW.group(x.shape[-1]))
    return hadamard(coded.to(torch.float32)).to(x.dtype)


class RoundedStore(DenseStore):
    """Float32 slots into which keys and values come as bfloat16 would hold them."""

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Vectors, Vectors]:
        return q, k.bfloat16().to(self.k.dtype), v.bfloat16().to(self.v.dtype)


class TieredLayer:
    """Slots of a layer of which at most `num_exact` per head are exact.

    `coded` int32 [B, H_KV, S + 1] is the position of the token that was rounded in a slot, so that a slot with another
    token is exact again.
    """

    def __init__(self, layer: LayerSlots, num_exact: int) -> None:
        assert isinstance(layer.store, DenseStore)
        self.layer, self.num_exact = layer, num_exact
        layer.store = self.floats = RoundedStore(layer.store.k, layer.store.v)
        self.coded = torch.full_like(layer.pos, -1)

    def is_exact(self, rows: slice) -> Tensor:
        """Which slots hold a token that was never rounded: bool [n, H_KV, S]."""
        pos = self.layer.pos[rows, :, :-1]
        return (pos >= 0) & (self.coded[rows, :, :-1] != pos)

    def demote(self, step: Step) -> None:
        """Round what is not among the best `num_exact` of the exact slots of the rows that were fed."""
        rows = step.rows
        exact = self.is_exact(rows)
        fed = (step.pos[:, -1] >= 0)[:, None, None]
        kept = min(self.num_exact, self.layer.slots)
        best = self._rank(rows, step).masked_fill(~exact, -torch.inf).topk(kept, -1).indices
        leaving = exact.scatter(-1, best, False) & fed
        for held in (self.floats.k, self.floats.v):
            view = held[rows, :, :-1]
            view[leaving] = as_int4(view[leaving])
        coded = self.coded[rows, :, :-1]
        coded.copy_(torch.where(leaving, self.layer.pos[rows, :, :-1], coded))

    def recode(self, row: int, turned: Tensor) -> None:
        """Round the keys of a row that are coded and were turned, bool [H_KV, S + 1], once more."""
        coded = turned & (self.coded[row] == self.layer.pos[row]) & (self.layer.pos[row] >= 0)
        self.floats.k[row][coded] = as_int4(self.floats.k[row][coded])

    def _rank(self, rows: slice, step: Step) -> Tensor:
        """The policy's score of every slot under the protections of a cache of `num_exact` slots."""
        policy, statistic = self.layer.policy, self.layer.statistic
        pos, next_pos = self.layer.pos[rows, :, :-1], step.pos[:, -1:, None] + 1
        known = None if statistic is None else statistic[rows, :, :-1]
        norm = self.floats.v[rows, :, :-1].norm(dim=-1) if policy.needs_value_norm else None
        recent = max(1, min(policy.recent(self.num_exact), self.num_exact))
        score = policy.score(Candidates(pos, next_pos, known, norm))
        return score.masked_fill((pos >= next_pos - recent) | (pos < policy.sinks), torch.inf)


class Tiers:
    """The tiers of all layers of `cache`, whose steps demote from now on after they have evicted."""

    def __init__(self, cache: SlotCache, share: Fraction) -> None:
        self.layers = [TieredLayer(layer, num_exact(share, layer.slots)) for layer in cache.layers.values()]
        self._end, self._reset, self._rerotate = cache.end, cache.reset, cache.rerotate
        cache.end, cache.reset, cache.rerotate = self.end, self.reset, self.rerotate  # type: ignore[method-assign]

    def end(self, step: Step) -> None:
        self._end(step)
        for tier in self.layers:
            tier.demote(step)

    def reset(self, row: int) -> None:
        self._reset(row)
        for tier in self.layers:
            tier.coded[row].fill_(-1)

    def rerotate(self, row: int) -> int:
        before = [tier.layer.rot[row].clone() for tier in self.layers]
        end = self._rerotate(row)
        for tier, rot in zip(self.layers, before, strict=True):
            tier.recode(row, tier.layer.rot[row] != rot)
        return end


@dataclass(frozen=True, slots=True)
class Tiered(Placed):
    """A variant whose slots are exact up to a `share`; its plan counts the bytes of both tiers."""

    share: Fraction = Fraction(1)

    def open(self, loaded: LoadedModel, rows: int) -> Engine:
        engine = Placed.open(self, loaded, rows)
        Tiers(engine.cache, self.share)
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
