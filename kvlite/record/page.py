"""A report as one HTML page that needs nothing else: sections of sentences, plots as inline SVG, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from kvlite.record.plot import HEIGHT, NUM_COLOURS, WIDTH, Curve, Plot
from kvlite.record.table import Table

ON_LIGHT = ("#1565c0", "#c62828", "#2e7d32", "#d86400", "#6a1b9a", "#00838f", "#827717", "#5d4037")
ON_DARK = ("#64b5f6", "#ef7b7b", "#81c784", "#ffb74d", "#ce93d8", "#4dd0e1", "#dce775", "#bcaaa4")
DASHES = ("none", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: a conclusion, a note on what it is about, plots and tables."""

    title: str = ""
    conclusion: str = ""
    about: str = ""
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def legend(self) -> list[Curve]:
        """One curve of each name."""
        curves = {curve.number: curve for plot in self.plots for curve in plot.curves}
        return [curves[number] for number in sorted(curves)]


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1.1rem; margin-top: 3rem; border-top: 1px solid; padding-top: 1rem; }
code { font-size: .85rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin-top: 1.2rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .9rem; font-weight: bold; padding-bottom: .2rem; }
th, td { padding: .1rem .9rem .1rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
th { border-bottom: 1px solid currentColor; }
.words td:last-child { white-space: normal; overflow-wrap: anywhere; }
.alarm { color: #c62828; }
.conclusion { font-size: 1.05rem; }
.note { font-size: .8rem; opacity: .8; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .9rem; padding: 0; list-style: none; }
.legend svg { width: 26px; height: 10px; margin-right: .4rem; }
.wide { overflow-x: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; margin: 1rem 0; }
figure { margin: 0; width: 22rem; max-width: 100%; }
figcaption { font-size: .9rem; font-weight: bold; }
svg { width: 100%; height: auto; overflow: visible; }
text { fill: currentColor; font-size: 11px; }
.axis { stroke: currentColor; fill: none; }
.grid { stroke: currentColor; opacity: .15; }
.dot { fill: var(--c); }
.line { stroke: var(--c); stroke-width: 1.5; fill: none; }
.interval { stroke: var(--c); stroke-width: 1.5; opacity: .55; }
{% for colour in light %}.c{{ loop.index0 }} { --c: {{ colour }}; }
{% endfor %}
@media (prefers-color-scheme: dark) {
{% for colour in dark %}.c{{ loop.index0 }} { --c: {{ colour }}; }
{% endfor %}
}
</style>
</head>
<body>
<h1{% if is_alarm %} class="alarm"{% endif %}>{{ headline }}</h1>
<p><code>{{ subject }}</code></p>
{% for section in sections %}
{% if section.title %}<h2>{{ section.title }}</h2>
{% endif %}
{% if section.conclusion %}<p class="conclusion">{{ section.conclusion }}</p>
{% endif %}
{% if section.about %}<p class="note">{{ section.about }}</p>
{% endif %}
{% if section.plots %}
<ul class="legend">
{% for curve in section.legend %}
<li><svg viewBox="0 0 26 10" class="c{{ curve.colour }}" aria-hidden="true"><path class="line" d="M0 5H26" stroke-dasharray="{{ dashes[curve.dashes % dashes|length] }}"/><circle class="dot" cx="13" cy="5" r="3"/></svg>{{ curve.name }}</li>
{% endfor %}
</ul>
<div class="plots">
{% for plot in section.plots %}
<figure>
<figcaption>{{ plot.title }}</figcaption>
<svg viewBox="-46 -22 {{ width + 50 }} {{ height + 60 }}" role="img" aria-label="{{ plot.y_title }} by {{ plot.x_title }}: {{ plot.title }}">
<text x="-46" y="-10">{{ plot.y_title }}</text>
{% for tick in plot.y_ticks %}
<path class="grid" d="M0 {{ tick.at }}H{{ width }}"/><text x="-5" y="{{ tick.at + 4 }}" text-anchor="end">{{ tick.label }}</text>
{% endfor %}
{% for tick in plot.x_ticks %}
<path class="axis" d="M{{ tick.at }} {{ height }}v4"/><text x="{{ tick.at }}" y="{{ height + 17 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor %}
<text x="{{ width }}" y="{{ height + 33 }}" text-anchor="end">{{ plot.x_title }}</text>
{% for curve in plot.curves %}
<g class="c{{ curve.colour }}">
<polyline class="line" points="{% for mark in curve.marks %}{{ mark.x }},{{ mark.y }} {% endfor %}" stroke-dasharray="{{ dashes[curve.dashes % dashes|length] }}"/>
{% for mark in curve.marks %}
{% if mark.low is not none %}<path class="interval" d="M{{ mark.x }} {{ mark.low }}V{{ mark.high }}"/>{% endif %}
{% if mark.dot %}<circle class="dot" cx="{{ mark.x }}" cy="{{ mark.y }}" r="3"/>{% endif %}
{% endfor %}
</g>
{% endfor %}
<path class="axis" d="M0 0V{{ height }}H{{ width }}"/>
</svg>
</figure>
{% endfor %}
</div>
{% endif %}
{% for table in section.tables %}
<div class="wide"><table{% if table.columns|length < 3 %} class="words"{% endif %}>
{% if table.caption %}<caption>{{ table.caption }}</caption>
{% endif %}
<tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% if table.note %}<p class="note">{{ table.note }}</p>
{% endif %}
{% endfor %}
{% endfor %}
</body>
</html>
"""  # noqa: E501


def page(title: str, headline: str, subject: str, sections: Sequence[Section], *, is_alarm: bool = False) -> str:
    """The whole page, `subject` being the run or model it is about; whatever is shown is escaped."""
    assert len(ON_LIGHT) == len(ON_DARK) == NUM_COLOURS
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    return template.render(
        title=title,
        headline=headline,
        subject=subject,
        sections=sections,
        is_alarm=is_alarm,
        width=WIDTH,
        height=HEIGHT,
        light=ON_LIGHT,
        dark=ON_DARK,
        dashes=DASHES,
    )
