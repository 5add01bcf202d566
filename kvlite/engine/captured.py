"""A decode step that is recorded once and run again: ids in, ids out, on tensors that stay where they are.

Embed, layers, head, sampling and the ids that come next are one piece of work without a word from the host, which only
starts it and reads the ids. What a step's kernels look like follows from its `Key`; there is one recording for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite.cache.cache import SlotCache
from kvlite.cache.reach import Reach, farthest, placements, reach
from kvlite.engine.graphs import Recorder
from kvlite.engine.recordings import Recordings
from kvlite.engine.row import Row
from kvlite.engine.sampling import Draws, drawn, uniforms
from kvlite.engine.standing import Standing, StandingTensors
from kvlite.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Key:
    """What the kernels of a step depend on: how many rows there are, how far attention reaches, who draws how.

    `pins` is the most pinned spans of a row.
    """

    rows: int
    reach: Reach
    samples: bool = False
    penalises: bool = False
    pins: int = 1


class CapturedStep:
    """Decode steps of `loaded` over `cache`, recorded by `recorder`. The host says which rows go on, and reads ids."""

    def __init__(self, loaded: LoadedModel, cache: SlotCache, recorder: Recorder) -> None:
        self.loaded = loaded
        self.cache = cache
        self.tensors = StandingTensors(cache, loaded.shape.vocab)
        self.recordings = Recordings(recorder, self.tensors)

    def rehearse(self) -> None:
        """Record the first steps there will be: into free slots, and into full ones. Raises NotCapturable."""
        self._recording(Key(1, reach(self.cache, [0]), samples=True, penalises=True))
        self._recording(Key(1, farthest(self.cache)))

    def launch(self, going: Sequence[Row]) -> Callable[[], list[int]]:
        """Start a step that feeds each of the rows what its tensors say; the function that is returned waits for it.

        It gives an id for each row up to the last that goes; those of rows that stand still mean nothing. Raises
        NotCapturable, and then nothing was fed.
        """
        jobs = [row.job for row in going if row.job is not None]
        samplings = [job.request.sampling for job in jobs]
        key = Key(
            rows=bucket(going[-1].index + 1, self.cache.plan.rows),
            reach=reach(self.cache, [row.index for row in going]),
            samples=any(not sampling.is_greedy for sampling in samplings),
            penalises=any(sampling.repetition_penalty != 1.0 for sampling in samplings),
            pins=self.tensors.num_pins,
        )
        self._recording(key)()
        return self.recordings.recorder.read(self.tensors.first(going[-1].index + 1).token)

    def _recording(self, key: Key) -> Callable[[], None]:
        return self.recordings.of(key, lambda: self._step(key))

    @torch.inference_mode()
    def _step(self, key: Key) -> None:
        """The recorded work. Reads and writes tensors that stay; asks nothing of the host, and the host nothing."""
        rows = self.tensors.first(key.rows)
        is_going = rows.going > 0
        ids = torch.where(is_going, rows.token, 0)[:, None]
        pos, rot = (torch.where(is_going, at, -1).int()[:, None] for at in (rows.seen, rows.rot))
        places = placements(key.reach, rows.live, is_going)
        pins = self.tensors.pins(key.pins)[: key.rows]
        step = self.cache.placed(slice(0, key.rows), pos, rot, (0,) * key.rows, pins, places)
        logits = self.loaded.forward(ids, self.cache, step)[:, -1]
        numbers = uniforms(rows.stem, rows.index) if key.samples else None
        _go_on(rows, drawn(logits, Draws(rows.settings, numbers, rows.used if key.penalises else None)))


def bucket(rows: int, most: int) -> int:
    """The power of two that holds so many rows, at most `most`."""
    return min(most, 1 << (rows - 1).bit_length())


def _go_on(rows: Standing, token: Tensor) -> None:
    """What each row that goes feeds next, int64 [n]; one that has ended stands still from here on."""
    for count in (rows.seen, rows.rot, rows.index):
        count.add_(rows.going)
    for slots, live in rows.live.items():
        live.add_(rows.going).clamp_(max=slots)
    rows.left.sub_(rows.going)
    rows.token.copy_(token)
    known = token.clamp(min=0)[:, None]  # what is no number ends the row
    is_end = (token < 0) | rows.ends.gather(1, known)[:, 0] | (rows.left <= 0)
    rows.going.mul_(~is_end)
    rows.used.scatter_(1, known, rows.used.gather(1, known) | (rows.going > 0)[:, None])
