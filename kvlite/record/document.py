"""A run record as a page, with the course of the run drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from kvlite.memory.format import human_bytes
from kvlite.record.page import ON_LIGHT, WIDTH, Curve, Mark, Plot, Section, page, round_ticks, x_at, y_at
from kvlite.record.schema import RunRecord, TimelinePoint
from kvlite.record.view import record_tables, run_line, verdict


def record_page(record: RunRecord) -> str:
    """The verdict, the plot and the tables as HTML."""
    kv = record.kv
    plots = (timeline_plot(record.timeline, kv.budget_bytes),) if kv and record.timeline else ()
    title = f"kvlite {record.command} {record.run_id}"
    sections = [Section(plots=plots, tables=tuple(record_tables(record)))]
    return page(title, verdict(record), run_line(record), sections, is_alarm=kv is not None and not kv.within_budget)


def timeline_plot(points: Sequence[TimelinePoint], budget_bytes: int) -> Plot:
    """Live KV bytes against tokens seen, or against time where the tokens do not only grow; dots mark events."""
    seen = [point.tokens_seen for point in points]
    grows = seen[-1] > 0 and all(a <= b for a, b in pairwise(seen))
    steps: list[float] = [*seen] if grows else [point.t_s for point in points]
    x_ends = (0.0, max(steps) or 1.0)
    y_ends = (0.0, max(budget_bytes, *(point.kv_bytes for point in points)) or 1.0)
    held = tuple(
        Mark(x_at(step, x_ends, WIDTH), y_at(point.kv_bytes, y_ends), dot=point.event is not None)
        for step, point in zip(steps, points, strict=True)
    )
    budget = tuple(Mark(x, y_at(budget_bytes, y_ends), dot=False) for x in (0.0, float(WIDTH)))
    dashed = len(ON_LIGHT) + 1
    return Plot(
        title="KV cache over the run",
        x_title="tokens seen" if grows else "seconds",
        y_title="bytes held",
        x_ticks=tuple((x_at(at, x_ends, WIDTH), f"{at:,g}") for at in _inside(x_ends)),
        y_ticks=tuple((y_at(at, y_ends), human_bytes(int(at))) for at in _inside(y_ends)),
        curves=(Curve("KV cache", 0, held), Curve(f"budget {human_bytes(budget_bytes)}", dashed, budget)),
    )


def _inside(ends: tuple[float, float]) -> list[float]:
    return [value for value in round_ticks(*ends) if value <= ends[1]]
