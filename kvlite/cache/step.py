"""What one forward pass feeds: the engine builds a Step, the attention seam hands it to every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from kvlite.cache.cache import SlotCache


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the new tokens of a step go in the layers that have `slots` slots per head.

    Appending (`index` int64 [n, T], the discard slot for padding): every row has room, so nothing is scored or
    evicted. Otherwise `index` is None and each layer evicts. Attention reads the first `extent` slots.
    """

    extent: int
    index: Tensor | None


@dataclass(frozen=True, slots=True)
class Step:
    """T tokens for each of n neighbouring rows: `pos` and `rot` int32 [n, T], -1 = padding (on the left).

    `pos` is a token's index in its conversation, `rot` the position its key is rotated by. `counts` is the number of
    real tokens per row. `pins` int32 [n, P, 2] are spans of positions never evicted, None where there are none.
    """

    cache: SlotCache
    rows: slice
    pos: Tensor
    rot: Tensor
    counts: tuple[int, ...]
    pins: Tensor | None
    placements: dict[int, Placement]

    @property
    def num_tokens(self) -> int:
        return self.pos.shape[1]
