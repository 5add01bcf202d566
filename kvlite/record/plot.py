"""A plot as values in SVG units: curves over an x axis, each with its colour. Knows no HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 180  # of a plot, in SVG units
NUM_COLOURS = 8
_MOST_TICKS = 5


@dataclass(frozen=True, slots=True)
class Mark:
    """A value in SVG units, with the ends of its interval where it has one; `dot` marks the value itself."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    dot: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Marks joined by a line. In all plots of a section a name has one `number`, which gives its colour and dashes."""

    name: str
    number: int
    marks: tuple[Mark, ...]

    @property
    def colour(self) -> int:
        """One of NUM_COLOURS."""
        return self.number % NUM_COLOURS

    @property
    def dashes(self) -> int:
        """The number of times that the colours were used up before this curve."""
        return self.number // NUM_COLOURS


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves with their axes."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


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
