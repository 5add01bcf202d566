"""The choice of how many ids to draft, from what chunks cost and how often drafts were right: floats and ints.

A chunk pays where the tokens that are expected of it take less time than as many single steps. Rightness is known of
every step, also where nothing was drafted: what would have been is compared with what was drawn.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvlite.engine.lookup import Draft, Lookup
from kvlite.engine.row import Row
from kvlite.options import Speculate

WIDTHS = (4, 8, 16)
"""Tokens of a chunk where `auto` chooses."""

_GAIN = 1.1
"""Times as many tokens in a second as single steps give, that a chunk has to promise."""

_SLOPE = 0.25
"""The price of one more token in a chunk, in single steps, before any was timed."""

_RATE = 0.15
"""The weight of the newest finding in a moving mean."""

_FADING = 0.999
"""The share left at each single step of the time that a chunk was found to take, so that it is timed again."""


_LOAN = 3.0
_ALLOWANCE = 0.0075
"""Single steps that chunks may lose in all, at first and more with each single step, before they have won any."""

_MOST_CREDIT = 16.0


@dataclass(slots=True)
class Pace:
    """Seconds of chunks by width, and the share of drafted ids that were right by how far back the text agreed.

    `credit` is the time, in single steps, that chunks may still lose.
    """

    credit: float = _LOAN
    seconds: dict[int, float] = field(default_factory=dict)
    right: list[float] = field(default_factory=lambda: [0.3, 0.4, 0.5, 0.6, 0.7])

    def took(self, width: int, seconds: float) -> None:
        """Note the time of a forward pass of `width` tokens; one that was held up counts little."""
        if width == 1:
            self.earn(_ALLOWANCE)
            self.seconds = {known: took * _FADING if known > 1 else took for known, took in self.seconds.items()}
        known = self.seconds.get(width, seconds)
        self.seconds[width] = known + _RATE * (min(seconds, 2 * known) - known)

    def earn(self, steps: float) -> None:
        """Note that so many single steps of time were won, or lost where that is negative."""
        self.credit = min(_MOST_CREDIT, self.credit + steps)

    def saw(self, matched: int, is_right: bool) -> None:
        """Note that an id, drafted where so many before it agreed, was right or not."""
        level = _level(matched)
        self.right[level] += _RATE * (is_right - self.right[level])

    def best(self, draft: Draft, proven: Collection[int]) -> int:
        """The number of ids of `draft` that are worth their chunk: 0, or one less than a width.

        A chunk of a width that is not `proven` wins nothing.
        """
        if 1 not in self.seconds:
            return 0
        chosen, fastest = 0, _GAIN / self.seconds[1]
        for width in WIDTHS:
            if width - 1 > len(draft.ids):
                break
            cost = self._cost(width)
            speed, loss = self._expected(draft.matched, width - 1) / cost, cost / self.seconds[1] - (width in proven)
            if speed > fastest and loss <= self.credit:
                chosen, fastest = width - 1, speed
        return chosen

    def _expected(self, matched: int, count: int) -> float:
        """The tokens that come of a chunk with so many drafted."""
        total = share = 1.0
        for number in range(count):
            share *= self.right[_level(matched + number)]
            total += share
        return total

    def _cost(self, width: int) -> float:
        """Seconds of a chunk; of one never timed as a straight line through single steps and the nearest that was."""
        single = self.seconds[1]
        timed = [known for known in self.seconds if known > 1]
        if not timed:
            return single * (1 + _SLOPE * (width - 1))
        nearest = min(timed, key=lambda known: abs(known - width))
        return single + (self.seconds[nearest] - single) * (width - 1) / (nearest - 1)


def _level(matched: int) -> int:
    """The class of drafts that so many ids before them agree with."""
    return sum(matched >= least for least in (3, 4, 8, 16))


@dataclass(slots=True)
class Trial:
    """A chunk that was fed and taken back, whose logits [T, V] those of single steps are compared with.

    The row had said `start` ids then.
    """

    row: Row
    start: int
    ids: tuple[int, ...]
    logits: Tensor
    compared: int = 0

    @property
    def width(self) -> int:
        """T."""
        return len(self.ids) + 1


class Speculation:
    """Drafts for the rows of one engine, one row at a time.

    Where `asked` is `auto`, a chunk of each width is tried first: the logits that count of it must be those of single
    steps, to the bit in half precision. If they are not, nothing is drafted from then on, and `obstacle` says so.
    """

    def __init__(self, asked: Speculate, obstacle: str = "") -> None:
        self.asked = asked
        self.obstacle = obstacle
        """The reason why nothing is drafted, empty where something is."""
        self.pace = Pace()
        self._lookups: dict[int, Lookup] = {}
        self._guess: Draft | None = None
        self._trial: Trial | None = None
        self._proven: set[int] = set()
        self._spent = 0.0  # single steps that the last chunk took

    @property
    def is_on(self) -> bool:
        """True unless nothing is drafted."""
        return self.asked != "off" and not self.obstacle

    def draft(self, row: Row, most: int) -> tuple[int, ...]:
        """The ids to verify behind the row's unfed one, at most so many; none where a single step is better."""
        self._guess = None
        if most < 1:
            return ()
        lookup = self._lookups.get(row.index)
        if lookup is None or lookup.said is not row.said:
            lookup = self._lookups[row.index] = Lookup(row.said)
        wanted = WIDTHS[-1] - 1 if self.asked == "auto" else int(self.asked)
        self._guess = guess = lookup.draft(min(most, wanted))
        if guess is None or self._trial is not None:
            return ()
        return guess.ids[: self.pace.best(guess, self._proven)] if self.asked == "auto" else guess.ids

    def tries(self, row: Row, ids: tuple[int, ...], logits: Tensor, seconds: float) -> bool:
        """True where the chunk with drafted `ids` and logits [T, V], which took so long, is a trial: it is taken back.

        Takes its time into account in any case.
        """
        self.pace.took(len(ids) + 1, seconds)
        self._spent = seconds / self.pace.seconds.get(1, seconds)
        if self.asked != "auto" or len(ids) + 1 in self._proven:
            return False
        self.pace.earn(-self._spent)
        self._trial = Trial(row, len(row.said), ids, logits.clone())
        return True

    def stepped(self, row: Row, token: int, logits: Tensor, seconds: float) -> None:
        """Learn from a single step of a row, whose logits [V] gave `token`, which it has not taken yet."""
        self.pace.took(1, seconds)
        guess, trial = self._guess, self._trial
        if guess is not None:
            self.pace.saw(guess.matched, guess.ids[0] == token)
        if trial is None:
            return
        if trial.row is not row or len(row.said) != trial.start + trial.compared:
            self._trial = None
            return
        if not agree(trial.logits[trial.compared], logits):
            self.obstacle = "a token's logits depend here on how many are computed at once, so an answer might change"
        trial.compared += 1
        if trial.compared == trial.width or trial.ids[trial.compared - 1] != token:
            self._proven |= {trial.width} if trial.compared > 1 else set()
            self._trial = None

    def verified(self, ids: tuple[int, ...], right: int) -> None:
        """Learn from a chunk, of whose drafted `ids` the first `right` were drawn, none of one that was taken back."""
        guess = self._guess
        if guess is not None and right >= 0:
            self.pace.earn(right + 1 - self._spent)
            for number in range(min(right + 1, len(ids))):
                self.pace.saw(guess.matched + number, number < right)


def agree(one: Tensor, other: Tensor) -> bool:
    """True of logits that are equal, of float32 up to rounding."""
    if one.dtype is torch.float32:
        return bool((one - other).abs().max() <= 1e-4 * other.abs().max())
    return torch.equal(one, other)
