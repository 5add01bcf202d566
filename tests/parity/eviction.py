"""Slots of several layers in which tokens wait, and the Triton kernel that evicts for them held against its twin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvlite_kernels import lowbit, ranking
from kvlite_kernels.kinds import Rank
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.reference import Vectors
from kvlite_kernels.slots import Held, Ranking
from tests.parity.compare import assert_parity
from tests.parity.poison import surrounded

LAYERS, ROWS, HEADS, D, D_V = 2, 2, 2, 12, 5
ALL = slice(0, ROWS)


@dataclass(frozen=True)
class Case:
    """Full slots but for `free` of the last row, and how they are ranked; equal statistics are `tied`."""

    ranking: Ranking
    window: int | None = None
    free: int = 0
    is_tied: bool = False
    seen: int = 90


def by(rank: Rank, slots: int = 40, recent: int = 5, sinks: int = 2, pins: Tensor | None = None) -> Ranking:
    return Ranking(rank, recent, sinks, slots, pins)


NINE = Rank("age", pooled=9)
PINS = torch.tensor([[[3, 30], [0, 0]], [[0, 33], [35, 60]]]).int()
CASES = {
    "nine positions": Case(by(NINE)),
    "per token of age": Case(by(Rank("age", 16, 9))),
    "the sum of five": Case(by(Rank("statistic", pooled=5))),
    "neighbours of a position": Case(by(Rank("position", pooled=3))),
    "alone": Case(by(Rank("age", 16))),
    "farther than there are slots": Case(by(Rank("statistic", pooled=99))),
    "ties": Case(by(NINE), is_tied=True),
    "all positions held": Case(by(NINE), seen=40),
    "pins": Case(by(NINE, sinks=0, pins=PINS)),
    "window": Case(by(NINE), window=30),
    "window that everything is in": Case(by(Rank("age", 7, 9)), window=200),
    "everything protected": Case(by(NINE, recent=100)),
    "a row with free slots": Case(by(NINE), free=7),
    "a row with one free slot": Case(by(NINE), free=1),
    "one slot": Case(by(NINE, slots=1, recent=1, sinks=0)),
    "two slots": Case(by(NINE, slots=2, recent=1, sinks=0)),
    "several tiles": Case(by(Rank("age", 1024, 9), slots=1100, recent=100, sinks=4), seen=3000),
}


def holding(case: Case, bits: int = 0, generator: torch.Generator | None = None) -> Held:
    """Slots of each head of each layer's rows, in no order, and behind them the token at position `seen`."""
    generator = generator or torch.Generator().manual_seed(case.ranking.slots)
    slots, heads = case.ranking.slots, (LAYERS * ROWS, HEADS)
    pos = torch.full((*heads, slots + 1), case.seen, dtype=torch.int32)
    pos[..., :slots] = torch.rand(*heads, case.seen, generator=generator).argsort(-1)[..., :slots]
    numbers = torch.rand(*heads, slots + 1, generator=generator)
    statistic = (3 * numbers).int().float() if case.is_tied else numbers
    if case.free:
        pos[ROWS - 1 :: ROWS, :, -case.free - 1 : -1] = -1
        statistic[pos < 0] = 0.0
    k, v = (_slots_of(torch.randn(*heads, slots + 1, dim, generator=generator), bits) for dim in (D, D_V))
    order = torch.arange(slots + 1).int().expand(*heads, -1)
    return Held(k, v, surrounded(pos), surrounded(pos + 7), surrounded(statistic), surrounded(order))


def _slots_of(x: Tensor, bits: int) -> Vectors:
    if not bits:
        return surrounded(x)
    packed = lowbit.quantise(x, bits, x.shape[-1] & -x.shape[-1])
    return Packed(surrounded(packed.codes), surrounded(packed.scale), packed.dim)


def on(held: Held, device: torch.device) -> Held:
    """A copy on another device."""
    assert isinstance(held.k, Tensor) and isinstance(held.v, Tensor) and held.statistic is not None
    k, v, pos, rot, statistic = (x.to(device) for x in (held.k, held.v, held.pos, held.rot, held.statistic))
    order = None if held.order is None else held.order.to(device)
    return Held(k, v, pos, rot, statistic, order)


def part(held: Held, rows: slice) -> Held:
    """Some of the rows, in the same memory."""
    assert held.statistic is not None and held.order is not None
    k, v = held.k[rows], held.v[rows]
    return Held(k, v, held.pos[rows], held.rot[rows], held.statistic[rows], held.order[rows])


def copied(held: Held) -> Held:
    statistic = None if held.statistic is None else held.statistic.clone()
    return Held(held.k.clone(), held.v.clone(), held.pos.clone(), held.rot.clone(), statistic)


def tensors(held: Held) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"pos": held.pos, "rot": held.rot}
    for name, vectors in (("k", held.k), ("v", held.v)):
        if isinstance(vectors, Tensor):
            found[name] = vectors
        else:
            found |= {name: vectors.codes, f"{name}_scale": vectors.scale}
    return found if held.statistic is None else {**found, "statistic": held.statistic}


def check(held: Held, case: Case, q_pos: Tensor, rows: slice = ALL) -> None:
    """The kernel leaves what the twin leaves in each layer, and the order of every head in which it ranked."""
    from kvlite_kernels.triton_set.writing import evict

    twin, slots = copied(held), case.ranking.slots
    is_full = (held.pos >= 0).all(-1).all(-1)
    assert held.order is not None
    for start in range(0, LAYERS * ROWS, ROWS):
        fed = slice(start + rows.start, start + rows.stop)
        ranking.evict(part(replace(twin, order=held.order), fed), q_pos, case.ranking, case.window)
    evict(held, rows, LAYERS, q_pos, case.ranking, case.window)
    for name, tensor in tensors(held).items():
        assert_parity(name, tensor, tensors(twin)[name], 0.0)
    for row in range(LAYERS * ROWS):
        fed = row % ROWS - rows.start
        if 0 <= fed < rows.stop - rows.start and is_full[row]:  # the token that waits included
            assert_parity("order", held.order[row, :, :slots], held.pos[row, :, :slots].argsort(-1).int())
