"""A report as one HTML page that needs nothing else: what follows, the tables, and plots as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from kvlite.evaluation.report import Report
from kvlite.evaluation.summary import Line, Summary
from kvlite.evaluation.view import headline, table

WIDTH, HEIGHT = 360, 180  # of a plot, in SVG units
COLOURS = ("#1565c0", "#c62828", "#2e7d32", "#ef6c00", "#6a1b9a", "#00838f", "#9e9d24", "#5d4037")

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvlite eval {{ report.model }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1.1rem; margin-top: 2.5rem; }
code { font-size: .85rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin-top: 1rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .1rem .9rem .1rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
th { border-bottom: 1px solid currentColor; }
.note, text { font-size: .8rem; opacity: .75; }
.wide { overflow-x: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 2.5rem 3rem; margin-top: 2rem; }
figure { margin: 0; width: 22rem; max-width: 100%; }
figcaption { font-size: .9rem; }
svg { width: 100%; height: auto; overflow: visible; }
text { fill: currentColor; }
</style>
</head>
<body>
<h1>What the KV budget costs</h1>
<p><code>{{ headline }}</code></p>
{% for section in sections %}
<h2>{{ section.table.title }}</h2>
<p>{{ section.table.verdict }}</p>
<p class="note">{{ section.table.about }}. In brackets: intervals of 95 %.</p>
<p class="note">{% for name, colour in section.legend %}<span style="color: {{ colour }}">&#9632;</span> {{ name }} &#160; {% endfor %}</p>
<div class="plots">
{% for plot in section.plots %}
<figure>
<figcaption>{{ plot.title }}</figcaption>
<svg viewBox="-34 -8 {{ width + 40 }} {{ height + 40 }}" role="img" aria-label="{{ plot.title }}">
<path d="M0 0V{{ height }}H{{ width }}" stroke="currentColor" fill="none"/>
{% for tick in plot.y_ticks %}<text x="-4" y="{{ tick.at + 4 }}" text-anchor="end">{{ tick.label }}</text>
<path d="M0 {{ tick.at }}H{{ width }}" stroke="currentColor" opacity=".15"/>
{% endfor %}{% for tick in plot.x_ticks %}<text x="{{ tick.at }}" y="{{ height + 16 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor %}{% for curve in plot.curves %}{% for mark in curve.marks %}<path d="M{{ mark.x }} {{ mark.low }}V{{ mark.high }}" stroke="{{ curve.colour }}" opacity=".4"/>
<circle cx="{{ mark.x }}" cy="{{ mark.y }}" r="2.5" fill="{{ curve.colour }}"/>
{% endfor %}<polyline points="{% for mark in curve.marks %}{{ mark.x }},{{ mark.y }} {% endfor %}" stroke="{{ curve.colour }}" fill="none"/>
{% endfor %}<text x="{{ width }}" y="{{ height + 32 }}" text-anchor="end">{{ plot.x_title }}</text>
</svg>
</figure>
{% endfor %}
</div>
<div class="wide"><table>
<tr>{% for column in section.table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in section.table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
</body>
</html>
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval, in SVG units."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A number on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One variant's values."""

    colour: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """The main figure of a suite by distance, under one budget; the reference is in every plot."""

    title: str
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


def report_page(report: Report) -> str:
    """The whole page; everything that came from the model or the user is escaped."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    sections = [
        {"table": table(summary), "legend": list(_colours(summary).items()), "plots": _plots(summary)}
        for summary in report.summaries
    ]
    return page.render(report=report, headline=headline(report), sections=sections, width=WIDTH, height=HEIGHT)


def _colours(summary: Summary) -> dict[str, str]:
    names = dict.fromkeys(line.placed.variant.name for line in summary.lines)
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def _plots(summary: Summary) -> list[Plot]:
    """One plot per budget and, where the text was fed in several ways, per T."""
    groups: dict[str, list[Line]] = {}
    for line in summary.lines[1:]:
        is_single = summary.result.suite.is_forced and line.placed.plan.chunk == 1
        groups.setdefault(line.placed.budget_text + (", T = 1" if is_single else ""), []).append(line)
    top = max((part.estimate.high for line in summary.lines for part in line.parts), default=1.0)
    top = 1.0 if summary.higher_is_better else top or 1.0
    plots = [_plot(summary, title, [summary.reference, *lines], top) for title, lines in groups.items()]
    return plots or [_plot(summary, "everything", [summary.reference], top)]


def _plot(summary: Summary, title: str, lines: Sequence[Line], top: float) -> Plot:
    labels = {part.upto: part.label for line in lines for part in line.parts}
    step = WIDTH / max(1, len(labels))
    at = {upto: round((index + 0.5) * step, 1) for index, upto in enumerate(labels)}
    colours = _colours(summary)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - min(value, top) / top), 1)

    curves = []
    for line in lines:
        marks = [Mark(at[p.upto], y(p.estimate.value), y(p.estimate.low), y(p.estimate.high)) for p in line.parts]
        curves.append(Curve(colours[line.placed.variant.name], tuple(marks)))
    y_ticks = [Tick(y(top * quarter / 4), _label(summary, top * quarter / 4)) for quarter in range(5)]
    x_ticks = [Tick(at[upto], label) for upto, label in labels.items()]
    return Plot(title, summary.unit, tuple(x_ticks), tuple(y_ticks), tuple(curves))


def _label(summary: Summary, value: float) -> str:
    return f"{value:.0%}" if summary.higher_is_better else f"{value:.3g}"
