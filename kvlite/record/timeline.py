"""The course of a run in at most 1,000 points, thinned while it is recorded. Knows nothing of files."""

from __future__ import annotations

from kvlite.record.schema import TimelinePoint

MAX_POINTS = 1000


class Timeline:
    """Keeps one point of every `stride` samples; when full, halves its `points` and doubles the stride.

    Of points that are merged the one with an event stays, else the one with the most bytes, so that peaks survive.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        assert max_points % 2 == 0, "points are merged in pairs"
        self.points: list[TimelinePoint] = []
        self._max_points, self._stride, self._num_samples = max_points, 1, 0

    def add(self, point: TimelinePoint) -> None:
        """Take one sample."""
        if self._num_samples % self._stride:
            self.points[-1] = _pick(self.points[-1], point)
        else:
            self.points.append(point)
        self._num_samples += 1
        if self._num_samples == self._max_points * self._stride:
            self.points = [_pick(*pair) for pair in zip(self.points[::2], self.points[1::2], strict=True)]
            self._stride *= 2


def _pick(first: TimelinePoint, second: TimelinePoint) -> TimelinePoint:
    return max(second, first, key=lambda point: (point.event is not None, point.kv_bytes))
