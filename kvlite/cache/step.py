"""Facts of one forward pass: the engine builds a Step, the attention function hands it to every layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kvlite_kernels.statistic import Observation

UNHEARD = 1e30
"""The statistic of a token whose query has not asked again, where the policy echoes: more than any receives."""


@dataclass(frozen=True, slots=True)
class SlotMapping:
    """The slots that a step's new tokens go to, in layers with a certain number of slots per head.

    `index` says which slots they are written to before attention reads the first `extent`: a slice where that is the
    same for all rows, else int64 [n, 1, T] with the discard slot for padding. It is None where a chunk finds no room:
    attention then reads slots and chunk apart, and the best of both stay. `evicts` says that tokens wait in the discard
    slot, from where each moves over a victim after attention. `before` says that each query sees the first so many of
    the slots read, unless a window hides them; the rest are those of the new tokens, in order, or free. It is None
    where that is not so or differs between the rows. Where a row `has_gaps`, a window may hide some of few tokens.
    """

    extent: int
    index: Tensor | slice | None
    evicts: bool = False
    before: int | None = None
    has_gaps: bool = False


@dataclass(frozen=True, slots=True)
class Echo:
    """The queries of a step once more, moved behind its tokens: these are then known by what they receive from it.

    `pos` int32 [n, T] are the positions that they ask from, `by` int32 [n, 1, 1] positions behind their own, -1 =
    padding. `weight` fp32 [n, T] is that of each query; tokens from position `first` int32 [n, 1, 1] on are known anew.
    """

    pos: Tensor
    by: Tensor
    weight: Tensor
    first: Tensor


@dataclass(frozen=True, slots=True)
class Received:
    """The statistic that tokens in turn add to slots whose statistic is `known` [n, H_KV, S + 1].

    `shares` [n, H_KV, N] are of one token after another; all count as `observation` says of one.
    """

    known: Tensor
    observation: Observation
    shares: list[Tensor]

    def add(self, number: int) -> None:
        """Add that of token `number`."""
        share = self.shares[number]
        self.observation.add_to(self.known[..., : share.shape[-1]], share)


@dataclass(slots=True)
class Turns:
    """A mark of a step whose tokens attend one after another, each as if it were decoded alone, and may be dropped.

    Until one is kept, what it adds to the statistic is in `received`, by part.
    """

    received: list[Received] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Step:
    """T tokens for each of n neighbouring rows: `pos` and `rot` int32 [n, T], -1 = padding (on the left).

    `pos` is a token's index in its conversation, `rot` the position its key is rotated by; `counts` is the number of
    real tokens per row. `observation` says how attention counts for the policy, None where it does not. `pins` int32
    [n, P, 2] are spans of positions never evicted, None where there are none. `mappings` are by number of slots. `echo`
    is that of its tokens, None where none is asked for; where it `is_again`, slots hold the tokens already. With
    `turns` they come one after another, each observed as `observation` says of one.
    """

    rows: slice
    pos: Tensor
    rot: Tensor
    counts: tuple[int, ...]
    observation: Observation | None
    pins: Tensor | None
    mappings: dict[int, SlotMapping]
    echo: Echo | None = None
    is_again: bool = False
    turns: Turns | None = None

    @property
    def next_pos(self) -> Tensor:
        """The position after the newest of each row, int [n, 1, 1]; padding is on the left."""
        return self.pos[:, -1:, None] + 1
