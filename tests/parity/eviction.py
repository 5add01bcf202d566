"""Slots of several layers in which tokens wait, and the Triton backend that evicts for them held against torch's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvlite_kernels import lowbit
from kvlite_kernels.backend import TORCH, Backend
from kvlite_kernels.eviction import Protection
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.slots import Slots, Vectors
from tests.parity.compare import assert_parity
from tests.parity.poison import surrounded

LAYERS, ROWS, HEADS, D, D_V = 2, 2, 2, 12, 5


@dataclass(frozen=True)
class Case:
    """Full slots but for `free` of the last row, and who is protected; equal scores are `tied`."""

    protection: Protection
    slots: int = 40
    free: int = 0
    is_tied: bool = False
    seen: int = 90


PINS = torch.tensor([[[3, 30], [0, 0]], [[0, 33], [35, 60]]]).int()
CASES = {
    "sinks and recent": Case(Protection(5, 2)),
    "ties": Case(Protection(5, 2), is_tied=True),
    "pins": Case(Protection(5, 0, pins=PINS)),
    "more pins than are kept": Case(Protection(5, 2, pins=PINS, most_pinned=6)),
    "ties among more pins than are kept": Case(Protection(5, 2, pins=PINS, most_pinned=6), is_tied=True),
    "fewer pins than are kept": Case(Protection(5, 2, pins=PINS, most_pinned=38), slots=45),
    "window, expired first": Case(Protection(5, 2, window=30)),
    "window that everything is in": Case(Protection(5, 2, window=200)),
    "everything protected": Case(Protection(100, 0)),
    "a row with free slots": Case(Protection(5, 2), free=7),
    "a row with one free slot": Case(Protection(5, 2), free=1),
    "one slot": Case(Protection(1, 0), slots=1),
    "several tiles": Case(Protection(100, 4), slots=2100, seen=3000),
}


def holding(case: Case, bits: int = 0, has_statistic: bool = True) -> Slots:
    """Slots of each head of each layer's rows, in no order, and behind them the token at position `seen`."""
    generator = torch.Generator().manual_seed(case.slots)
    heads = (LAYERS, ROWS, HEADS)
    pos = torch.full((*heads, case.slots + 1), case.seen, dtype=torch.int32)
    pos[..., : case.slots] = torch.rand(*heads, case.seen, generator=generator).argsort(-1)[..., : case.slots]
    if case.free:
        pos[:, ROWS - 1, :, -case.free - 1 : -1] = -1
    statistic = torch.rand(*heads, case.slots + 1, generator=generator)
    k, v = (_vectors(torch.randn(*heads, case.slots + 1, dim, generator=generator), bits) for dim in (D, D_V))
    starts = torch.arange(0, pos.numel(), case.slots + 1).view(*heads, 1)
    return Slots(k, v, pos, pos + 7, statistic if has_statistic else None, starts)


def scores(case: Case) -> Tensor:
    numbers = torch.rand(LAYERS, ROWS, HEADS, case.slots + 1, generator=torch.Generator().manual_seed(7))
    return surrounded((3 * numbers).int().float() if case.is_tied else numbers)


def _vectors(x: Tensor, bits: int) -> Vectors:
    return lowbit.quantise(x, bits, x.shape[-1] & -x.shape[-1]) if bits else x


def on(slots: Slots, device: torch.device) -> Slots:
    """A copy, on another device."""

    def moved(x: Vectors) -> Vectors:
        return x.to(device, copy=True) if isinstance(x, Tensor) else Packed(moved(x.codes), moved(x.scale), x.dim)  # type: ignore[arg-type]

    statistic, bias = (None if x is None else x.to(device, copy=True) for x in (slots.statistic, slots.bias))
    pos, rot, starts = (x.to(device, copy=True) for x in (slots.pos, slots.rot, slots.starts))
    return Slots(moved(slots.k), moved(slots.v), pos, rot, statistic, starts, bias)


def check(
    backend: Backend, slots: Slots, case: Case, score: Tensor, next_pos: Tensor, rows: slice = slice(0, ROWS)
) -> None:
    """The backend leaves what torch leaves, victim by victim; what lies in the discard slots means nothing."""
    expected = on(slots, slots.pos.device)
    TORCH.evict(expected.of_rows(rows), score, next_pos, case.protection)
    backend.evict(slots.of_rows(rows), score, next_pos, case.protection)
    wanted = dict(expected.tensors())
    for name, tensor in slots.tensors():
        assert_parity(name, tensor[:, :, :, : case.slots], wanted[name][:, :, :, : case.slots], 0.0)


def pinned_to(case: Case, rows: slice) -> Case:
    """The case of some of the rows."""
    pins = case.protection.pins
    return case if pins is None else replace(case, protection=replace(case.protection, pins=pins[rows]))
