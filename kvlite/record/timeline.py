"""The course of a run in at most 1,000 points, thinned while it is recorded. Knows nothing of files."""

from __future__ import annotations

from kvlite.record.schema import TimelinePoint

MAX_POINTS = 1000


class Timeline:
    """Keeps one point of every `stride` samples; when full, halves its points and doubles the stride.

    Of points that are merged the one with an event stays, else the one with the most bytes, so that peaks survive.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._max_points = max_points
        self._points: list[TimelinePoint] = []
        self._stride = 1
        self._open: TimelinePoint | None = None
        self._num_open = 0

    def add(self, point: TimelinePoint) -> None:
        """Take one sample."""
        self._open = point if self._open is None else _pick(self._open, point)
        self._num_open += 1
        if self._num_open < self._stride:
            return
        self._points.append(self._open)
        self._open, self._num_open = None, 0
        if len(self._points) >= self._max_points:
            pairs = zip(self._points[::2], self._points[1::2], strict=False)
            self._points = [_pick(first, second) for first, second in pairs]
            self._stride *= 2

    def points(self) -> list[TimelinePoint]:
        """The points so far, oldest first, never more than the maximum."""
        return [*self._points, self._open] if self._open is not None else list(self._points)


def _pick(first: TimelinePoint, second: TimelinePoint) -> TimelinePoint:
    ranks = [(point.event is not None, point.kv_bytes) for point in (first, second)]
    return first if ranks[0] > ranks[1] else second
