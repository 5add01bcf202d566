"""A report as one HTML page that needs nothing else: sections of sentences, plots as inline SVG, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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


def page(title: str, headline: str, subject: str, sections: Sequence[Section], *, is_alarm: bool = False) -> str:
    """The whole page, `subject` being the run or model it is about; whatever is shown is escaped."""
    assert len(ON_LIGHT) == len(ON_DARK) == NUM_COLOURS
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.jinja").render(
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
