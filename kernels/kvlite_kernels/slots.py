"""What kernels see of a layer's slots, where they write them in place. Loads torch, not triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kvlite_kernels.kinds import Rank
from kvlite_kernels.reference import Geometry, Vectors
from kvlite_kernels.statistic import Measure


@dataclass(frozen=True, slots=True)
class Held:
    """What n rows hold: `k`, `v` [n, H_KV, S + 1, ...], `pos`, `rot` int32 and the statistic fp32 [n, H_KV, S + 1].

    `order` int32 [n, H_KV, S + 1] is the order of slots by position that `SlotKernels.evict` keeps.
    """

    k: Vectors
    v: Vectors
    pos: Tensor
    rot: Tensor
    statistic: Tensor | None
    order: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Arriving:
    """New tokens: `k`, `v` [n, H_KV, T, ...], `pos`, `rot` int32 [n, T], their statistic [n, H_KV, T] (None: 0).

    Keys and values are numbers; where slots are coded, rotated ones, which the kernel codes.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    rot: Tensor
    statistic: Tensor | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Which of `slots` slots goes first: the lowest by `rank`, under the protections.

    The newest `recent` tokens, the first `sinks` and the spans `pins` int32 [n, P, 2] are kept, the last two only in
    layers without a window.
    """

    rank: Rank
    recent: int
    sinks: int
    slots: int
    pins: Tensor | None = None


class SlotKernels(Protocol):
    """Kernels that write slots in place."""

    def insert(self, held: Held, new: Arriving, index: Tensor | slice) -> None:
        """Put new tokens into the slots `index`: a slice, or int64 [n, H_KV or 1, T] with S for what is not kept."""
        ...

    def decode(
        self,
        q: Tensor,
        q_pos: Tensor,
        held: Held,
        extent: int,
        geometry: Geometry,
        measure: Measure | None,
        retention: Tensor | None,
        ranking: Ranking | None,
    ) -> Tensor:
        """One query per head, `q` [n, H_Q, 1, D] at `q_pos` int [n, 1], over the first `extent` slots -> out.

        The statistic is added to what `retention` [n, 1, 1] leaves of the one held. With a `ranking`, which does not
        pool, the token that waits in slot S is then put over the slot that goes first; padding is not.
        """
        ...

    def evict(self, held: Held, rows: slice, layers: int, q_pos: Tensor, ranking: Ranking, window: int | None) -> None:
        """Put the token that waits in slot S over the slot that goes first, once its query at `q_pos` has attended.

        As `kvlite_kernels.ranking.evict`, for `rows` of each of `layers` layers, whose rows lie one layer after
        another in `held`; `q_pos` int [n, 1] and the ranking's pins are of `rows`. The order of `held` may be any that
        this has left, or each slot at its own number: one that is not that of `pos` is made anew.
        """
        ...
