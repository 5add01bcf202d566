"""A run record as one HTML page that needs nothing else: tables and the timeline as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jinja2 import Environment, StrictUndefined

from kvlite.memory.format import human_bytes
from kvlite.record.schema import RunRecord, TimelinePoint
from kvlite.record.view import run_line, tables, verdict

WIDTH, HEIGHT = 800, 200  # of the plot, in SVG units

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvlite {{ record.command }} {{ record.run_id }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
code { font-size: .85rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin-top: 1.5rem; }
th, td { padding: .15rem 1.2rem .15rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { border-bottom: 1px solid currentColor; }
.over { color: #c62828; }
.note, text { font-size: .8rem; opacity: .75; }
svg { width: 100%; height: auto; margin-top: 1.5rem; overflow: visible; }
text { fill: currentColor; }
</style>
</head>
<body>
<h1{% if record.kv and not record.kv.within_budget %} class="over"{% endif %}>{{ verdict }}</h1>
<p><code>{{ run }}</code></p>
{% if plot %}
<svg viewBox="0 -20 {{ width }} {{ height + 45 }}" role="img" aria-label="KV bytes over the run">
<path d="M0 {{ height }}H{{ width }}" stroke="currentColor" fill="none"/>
<path d="M0 {{ plot.budget_y }}H{{ width }}" stroke="#c62828" stroke-dasharray="6 4" fill="none"/>
<text x="0" y="{{ plot.budget_y - 5 }}">budget {{ plot.budget }}</text>
{% for x in plot.events %}<path d="M{{ x }} {{ height }}v8" stroke="#ef6c00"/>
{% endfor %}<polyline points="{{ plot.line }}" stroke="#1565c0" stroke-width="2" fill="none"/>
<text x="{{ width }}" y="{{ height + 22 }}" text-anchor="end">{{ plot.end }}</text>
</svg>
{% endif %}
{% for table in tables %}
<table>
<tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Plot:
    """Live KV bytes against tokens seen, or against time where the tokens do not only grow; in SVG units."""

    line: str
    events: list[float]
    budget: str
    budget_y: float
    end: str


def report_html(record: RunRecord) -> str:
    """The whole page; everything that came from the run is escaped."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    return page.render(
        record=record,
        verdict=verdict(record),
        run=run_line(record),
        plot=_plot(record.timeline, record.kv.budget_bytes) if record.kv and record.timeline else None,
        tables=[table for table in tables(record) if table.columns[0] != "Timeline"],
        width=WIDTH,
        height=HEIGHT,
    )


def _plot(points: Sequence[TimelinePoint], budget_bytes: int) -> Plot:
    seen = [point.tokens_seen for point in points]
    grows = seen[-1] > 0 and all(a <= b for a, b in pairwise(seen))
    steps: list[float] = [*seen] if grows else [point.t_s for point in points]
    x_scale = WIDTH / (max(steps) or 1)
    y_scale = HEIGHT / (max(budget_bytes, *(point.kv_bytes for point in points)) or 1)
    xs = [round(step * x_scale, 1) for step in steps]
    ys = [round(HEIGHT - point.kv_bytes * y_scale, 1) for point in points]
    return Plot(
        line=" ".join(f"{x},{y}" for x, y in zip(xs, ys, strict=True)),
        events=[x for x, point in zip(xs, points, strict=True) if point.event is not None],
        budget=human_bytes(budget_bytes),
        budget_y=round(HEIGHT - budget_bytes * y_scale, 1),
        end=f"{seen[-1]:,} tokens seen" if grows else f"{steps[-1]:.1f} s",
    )
