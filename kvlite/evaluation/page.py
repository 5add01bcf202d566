"""A report as one HTML page that needs nothing else: what follows, plots as inline SVG, and the tables."""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined

from kvlite.evaluation.plots import HEIGHT, NUM_COLOURS, WIDTH, plots, styles
from kvlite.evaluation.report import Report
from kvlite.evaluation.view import headline, kinds_table, table

ON_LIGHT = ("#1565c0", "#c62828", "#2e7d32", "#d86400", "#6a1b9a", "#00838f", "#827717", "#5d4037")
ON_DARK = ("#64b5f6", "#ef7b7b", "#81c784", "#ffb74d", "#ce93d8", "#4dd0e1", "#dce775", "#bcaaa4")
DASHES = ("none", "6 3", "2 3", "8 3 2 3")

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvlite eval {{ report.model }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1.1rem; margin-top: 3rem; border-top: 1px solid; padding-top: 1rem; }
code { font-size: .85rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin-top: 1rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .9rem; font-weight: bold; padding-bottom: .2rem; }
th, td { padding: .1rem .9rem .1rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
th { border-bottom: 1px solid currentColor; }
.verdict { font-size: 1.05rem; }
.note { font-size: .8rem; opacity: .8; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .9rem; padding: 0; list-style: none; }
.legend svg { width: 26px; height: 10px; margin-right: .4rem; }
.wide { overflow-x: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; margin: 1rem 0; }
figure { margin: 0; width: 21.5rem; max-width: 100%; }
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
<h1>What the KV budget costs</h1>
<p><code>{{ headline }}</code></p>
{% for section in sections %}
<h2>{{ section.table.title }}</h2>
<p class="verdict">{{ section.table.verdict }}</p>
<p class="note">{{ section.table.about }}</p>
<ul class="legend">
{% for name, style in section.legend %}
<li><svg viewBox="0 0 26 10" class="c{{ style.colour }}" aria-hidden="true"><path class="line" d="M0 5H26" stroke-dasharray="{{ dashes[style.dashes % dashes|length] }}"/><circle class="dot" cx="13" cy="5" r="3"/></svg>{{ name }}</li>
{% endfor %}
</ul>
<div class="plots">
{% for plot in section.plots %}
<figure>
<figcaption>{{ plot.title }}</figcaption>
<svg viewBox="-36 -22 {{ width + 40 }} {{ height + 60 }}" role="img" aria-label="{{ plot.y_title }} by {{ plot.x_title }}: {{ plot.title }}">
<text x="-36" y="-10">{{ plot.y_title }}</text>
{% for tick in plot.y_ticks %}
<path class="grid" d="M0 {{ tick.at }}H{{ width }}"/><text x="-5" y="{{ tick.at + 4 }}" text-anchor="end">{{ tick.label }}</text>
{% endfor %}
{% for tick in plot.x_ticks %}
<path class="axis" d="M{{ tick.at }} {{ height }}v4"/><text x="{{ tick.at }}" y="{{ height + 17 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor %}
<text x="{{ width }}" y="{{ height + 33 }}" text-anchor="end">{{ plot.x_title }}</text>
{% for curve in plot.curves %}
<g class="c{{ curve.style.colour }}">
<polyline class="line" points="{% for mark in curve.marks %}{{ mark.x }},{{ mark.y }} {% endfor %}" stroke-dasharray="{{ dashes[curve.style.dashes % dashes|length] }}"/>
{% for mark in curve.marks %}
<path class="interval" d="M{{ mark.x }} {{ mark.low }}V{{ mark.high }}"/><circle class="dot" cx="{{ mark.x }}" cy="{{ mark.y }}" r="3"/>
{% endfor %}
</g>
{% endfor %}
<path class="axis" d="M0 0V{{ height }}H{{ width }}"/>
</svg>
</figure>
{% endfor %}
</div>
{% for rows in section.tables %}
<div class="wide"><table>
{% if rows.caption %}
<caption>{{ rows.caption }}</caption>
{% endif %}
<tr>{% for column in rows.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% endfor %}
</body>
</html>
"""  # noqa: E501


def report_page(report: Report) -> str:
    """The whole page; everything that came from the model or the user is escaped."""
    assert len(ON_LIGHT) == len(ON_DARK) == NUM_COLOURS
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    sections = []
    for summary in report.summaries:
        main, kinds = table(summary), kinds_table(summary)
        tables = [{"caption": "", "columns": main.columns, "rows": main.rows}]
        if kinds is not None:
            tables.append({"caption": kinds.title, "columns": kinds.columns, "rows": kinds.rows})
        legend = list(styles(summary).items())
        sections.append({"table": main, "tables": tables, "legend": legend, "plots": plots(summary)})
    return page.render(
        report=report,
        headline=headline(report),
        sections=sections,
        width=WIDTH,
        height=HEIGHT,
        light=ON_LIGHT,
        dark=ON_DARK,
        dashes=DASHES,
    )
