"""The tensors that captured work stands on, allocated once: what each row feeds next, how it draws, when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.reach import slot_counts
from kvlite.engine.row import Row
from kvlite.engine.sampling import NUM_SETTINGS, settings_of, stem

UNBOUNDED = 2**62
"""Tokens left of an answer without a limit."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The first n rows, as views; int64 [n] where nothing else is said.

    `token` is fed next, at position `seen`, rotated by `rot`; `index` is that of the token drawn then, `left` how many
    may be, `stem` the seed's part of the draw. `going` is 1 while the row answers, else 0, and then the row feeds
    padding. `live` are its live slots, by the number of slots. `settings` fp32 [NUM_SETTINGS, n] are of `Draws`; `ends`
    and `used` bool [n, V] are the stop ids and the ids used so far.
    """

    token: Tensor
    seen: Tensor
    rot: Tensor
    index: Tensor
    left: Tensor
    stem: Tensor
    going: Tensor
    live: dict[int, Tensor]
    settings: Tensor
    ends: Tensor
    used: Tensor


class StandingTensors:
    """`Standing` for all rows of a cache, over a vocabulary of `vocab` ids; their addresses never change."""

    def __init__(self, cache: SlotCache, vocab: int) -> None:
        rows, device = cache.plan.rows, cache.device
        self._slots = slot_counts(cache)
        self.integers = torch.zeros(7 + len(self._slots), rows, dtype=torch.int64, device=device)
        self._settings = torch.zeros(NUM_SETTINGS, rows, device=device)
        self._ends, self._used = (torch.zeros(rows, vocab, dtype=torch.bool, device=device) for _ in range(2))
        self._pins: dict[int, Tensor] = {}
        self.pins(1)
        self.num_pins = 1
        """The most pinned spans of a row, at least one: an empty span pins nothing."""

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        tensors = (self.integers, self._settings, self._ends, self._used, *self._pins.values())
        return sum(tensor.nbytes for tensor in tensors)

    def first(self, count: int) -> Standing:
        """The first `count` rows."""
        token, seen, rot, index, left, seeds, going, *live = self.integers[:, :count]
        return Standing(
            token,
            seen,
            rot,
            index,
            left,
            seeds,
            going,
            dict(zip(self._slots, live, strict=True)),
            self._settings[:, :count],
            self._ends[:count],
            self._used[:count],
        )

    def pins(self, width: int) -> Tensor:
        """The rows' pinned spans int32 [rows, width, 2], of which no row may have more."""
        if width not in self._pins:
            self._pins[width] = torch.zeros(
                self.integers.shape[1], width, 2, dtype=torch.int32, device=self.integers.device
            )
        return self._pins[width]

    def stand_still(self) -> None:
        """Let all rows feed padding."""
        self.first(self.integers.shape[1]).going.zero_()

    def place(self, row: Row) -> None:
        """Set where a row goes on and what it pins, to feed it a chunk. Waits for the device."""
        at = self.first(row.index + 1)
        at.seen[row.index], at.rot[row.index], at.going[row.index] = row.seen, row.rot, 1
        self._pin([row])

    def load(self, rows: Sequence[Row], cache: SlotCache) -> None:
        """Set what all `rows` of the cache do next; those with nothing to feed stand still. Waits for the device."""
        columns = [[*_integers(row), *(cache.live(row.index, slots) for slots in self._slots)] for row in rows]
        self.integers.copy_(torch.tensor(columns).T)
        self._ends.zero_()
        self._used.zero_()
        settings = []
        for row in rows:
            request = None if row.job is None else row.job.request
            settings.append((0.0,) * NUM_SETTINGS if request is None else settings_of(request.sampling))
            if request is not None:
                self._mark(self._ends[row.index], request.stop_ids)
                if request.sampling.repetition_penalty != 1.0:
                    self._mark(self._used[row.index], row.used)
        self._settings.copy_(torch.tensor(settings).T)
        self._pin(rows)

    def _pin(self, rows: Sequence[Row]) -> None:
        """Set the spans of neighbouring rows."""
        self.num_pins = max(1, *(len(row.pins) for row in rows))
        spans = [[*row.pins, *[(0, 0)] * (self.num_pins - len(row.pins))] for row in rows]
        here = slice(rows[0].index, rows[-1].index + 1)
        self.pins(self.num_pins)[here] = torch.tensor(spans, dtype=torch.int32)

    def _mark(self, marks: Tensor, ids: frozenset[int] | set[int]) -> None:
        known = [token for token in ids if 0 <= token < len(marks)]
        marks[torch.tensor(known, dtype=torch.int64, device=marks.device)] = True


def _integers(row: Row) -> tuple[int, ...]:
    """What a row feeds, in the order of Standing."""
    if row.job is None or row.unfed is None:
        return (0,) * 7
    request, answered = row.job.request, len(row.job.answer)
    left = UNBOUNDED if request.max_tokens is None else request.max_tokens - answered
    return row.unfed, row.seen, row.rot, answered, left, stem(request.sampling.seed), 1
