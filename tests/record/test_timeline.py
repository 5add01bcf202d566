"""Thinning: bounded, in order, and peaks and events survive."""

from __future__ import annotations

import random

from kvlite.record.recorder import MAX_POINTS, Timeline
from kvlite.record.schema import TimelinePoint


def point(t: int, kv_bytes: int = 0, event: str | None = None) -> TimelinePoint:
    return TimelinePoint(t_s=float(t), tokens_seen=t, kv_bytes=kv_bytes, event=event)


def test_few_samples_are_all_kept() -> None:
    timeline = Timeline()
    for t in range(999):
        timeline.add(point(t))
    assert [p.tokens_seen for p in timeline.points] == list(range(999))


def test_many_samples_stay_in_order_and_never_pass_the_maximum() -> None:
    timeline = Timeline()
    for t in range(20_011):
        timeline.add(point(t))
        assert len(timeline.points) <= MAX_POINTS
    times = [p.t_s for p in timeline.points]
    assert 400 <= len(times) <= MAX_POINTS
    assert times == sorted(times)
    assert times[-1] == 20_010


def test_the_highest_sample_survives() -> None:
    random_bytes = random.Random(7)
    timeline = Timeline(max_points=10)
    samples = [random_bytes.randrange(10**9) for _ in range(1234)]
    for t, kv_bytes in enumerate(samples):
        timeline.add(point(t, kv_bytes))
    assert max(p.kv_bytes for p in timeline.points) == max(samples)


def test_a_lone_event_survives_higher_samples() -> None:
    timeline = Timeline(max_points=10)
    for t in range(500):
        timeline.add(point(t, kv_bytes=0 if t == 123 else t, event="budget" if t == 123 else None))
    assert [p.tokens_seen for p in timeline.points if p.event] == [123]


def test_no_samples_make_no_points() -> None:
    assert Timeline().points == []
