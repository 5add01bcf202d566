"""A report as one HTML page that needs nothing else: sections of sentences, plots as inline SVG, and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvlite.record.table import Table

WIDTH, HEIGHT = 360, 180  # of a plot, in SVG units
ON_LIGHT = ("#1565c0", "#c62828", "#2e7d32", "#d86400", "#6a1b9a", "#00838f", "#827717", "#5d4037")
ON_DARK = ("#64b5f6", "#ef7b7b", "#81c784", "#ffb74d", "#ce93d8", "#4dd0e1", "#dce775", "#bcaaa4")
DASHES = ("none", "6 3", "2 3", "8 3 2 3")  # of curves beyond as many as there are colours
_MOST_TICKS = 5

Tick = tuple[float, str]
"""A place on an axis in SVG units, and its label."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A value in SVG units, with the ends of its interval where it has one; `dot` marks the value itself."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    dot: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """Marks joined by a line. In all plots of a section a name has one `number`, which gives its colour and dashes."""

    name: str
    number: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves with their axes."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # not loaded for reports as text

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


def x_at(value: float, ends: Sequence[float], width: int) -> float:
    """The x of a value on an axis from the first of `ends` to the last; values beyond them are clamped."""
    first, last = ends[0], ends[-1]
    return round(width * (min(max(value, first), last) - first) / (last - first), 1)


def y_at(value: float, ends: Sequence[float]) -> float:
    """The y of a value on such an axis, the last of `ends` on top."""
    return round(HEIGHT - x_at(value, ends, HEIGHT), 1)


def round_ticks(lowest: float, highest: float) -> list[float]:
    """About five round numbers, equally far from each other, from below `lowest` to above `highest`."""
    span = (highest - lowest) or abs(highest) or 1.0
    rough = span / (_MOST_TICKS - 1)
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 2.5 * power, 5 * power, 10 * power) if step >= rough * (1 - 1e-9))
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]
