"""What one forward pass feeds: the engine builds a Step, the attention seam hands it to every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the new tokens of a step go in the layers that have `slots` slots per head.

    Appending: every row has room, so nothing is scored or evicted, and `index` says which slots are next: a slice
    where that is the same for all rows, else int64 [n, 1, T] with the discard slot for padding. Otherwise `index` is
    None and each layer evicts. Attention reads the first `extent` slots. `is_whole` says that these and the new token,
    one per row, are all live, so that nothing but a window hides a key.
    """

    extent: int
    index: Tensor | slice | None
    is_whole: bool = False

    def repeated(self, times: int) -> Placement:
        """The same for `times` layers whose rows lie one layer after another."""
        return self if not isinstance(self.index, Tensor) else replace(self, index=self.index.repeat(times, 1, 1))


@dataclass(frozen=True, slots=True)
class Step:
    """T tokens for each of n neighbouring rows: `pos` and `rot` int32 [n, T], -1 = padding (on the left).

    `weight` fp32 [n, T] is how much each query's attention counts for the policy, 0 for padding; `retention` fp32
    [n, 1, 1] is the share that stays of the statistic a slot holds, None for all of it.
    `pos` is a token's index in its conversation, `rot` the position its key is rotated by. `counts` is the number of
    real tokens per row. `pins` int32 [n, P, 2] are spans of positions never evicted, None where there are none.
    """

    rows: slice
    pos: Tensor
    rot: Tensor
    weight: Tensor
    retention: Tensor | None
    counts: tuple[int, ...]
    pins: Tensor | None
    placements: dict[int, Placement]

    def repeated(self, times: int) -> Step:
        """The same for `times` layers whose rows lie one layer after another, to place and to evict; all are fed."""
        if times == 1:
            return self
        return replace(
            self,
            rows=slice(0, times * len(self.counts)),
            pos=self.pos.repeat(times, 1),
            rot=self.rot.repeat(times, 1),
            pins=None if self.pins is None else self.pins.repeat(times, 1, 1),
            placements={slots: placement.repeated(times) for slots, placement in self.placements.items()},
        )
