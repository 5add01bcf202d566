"""The page needs nothing but itself, is well formed, and escapes whatever it shows."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from html5lib import HTMLParser as HTML5Parser

from kvlite.record.page import ON_DARK, ON_LIGHT, Curve, Mark, Plot, Section, page
from kvlite.record.table import Table

DANGER = '<b>&"'
CURVES = (
    Curve("one", 1, (Mark(0, 0, 1, 2), Mark(4, 5, dot=False))),
    Curve(DANGER, len(ON_LIGHT), (Mark(0, 9, 8, 9),)),
    Curve("none", 0, ()),
)
PLOT = Plot(DANGER, "x", "y", ((0, "0"),), ((0, DANGER),), CURVES)
TABLES = (Table((DANGER, "b", "c"), ((DANGER, "2", "3"),), note="n"), Table(("a", ""), (("1", DANGER),)))
SECTIONS = (Section(DANGER, DANGER, DANGER, (PLOT, PLOT), TABLES), Section(tables=TABLES))


class Nesting(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def shown() -> str:
    return page(DANGER, DANGER, DANGER, SECTIONS)


def test_it_loads_nothing_and_runs_nothing(shown: str) -> None:
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\(|\son[a-z]+=", shown)


def test_it_is_valid(shown: str) -> None:
    HTML5Parser(strict=True).parse(shown)


def test_whatever_is_shown_is_escaped(shown: str) -> None:
    assert "<b>" not in shown and '&"' not in shown


def test_every_element_is_closed_and_all_parts_are_there(shown: str) -> None:
    nesting = Nesting()
    nesting.feed(shown)
    assert nesting.open == []
    counts = {tag: nesting.seen.count(tag) for tag in ("figure", "table", "h2", "ul")}
    assert counts == {"figure": 2, "table": 4, "h2": 1, "ul": 1}


def test_every_curve_is_in_the_legend_in_its_colour_and_dashes(shown: str) -> None:
    legend, drawing = shown.split("</ul>")
    pattern = r'class="c(\d)".*?stroke-dasharray="([\w ]+)".*?</svg>([^<]+)</li>'
    assert re.findall(pattern, legend) == [
        ("0", "none", "none"),
        ("1", "none", "one"),
        ("0", "6 3", "&lt;b&gt;&amp;&#34;"),
    ]
    assert set(re.findall(r'<g class="c(\d)">', drawing)) == {"0", "1"}


def test_no_two_curves_look_alike_where_there_are_more_than_colours() -> None:
    curves = tuple(Curve(str(number), number, ()) for number in range(3 * len(ON_LIGHT)))
    legend = page("", "", "", [Section(plots=(Plot("", "", "", (), (), curves),))]).split("</ul>")[0]
    assert len(set(re.findall(r'class="(c\d)".*?stroke-dasharray="([\w ]+)"', legend))) == len(curves)


def test_a_mark_has_an_interval_and_a_dot_only_where_it_says_so(shown: str) -> None:
    first = shown.split("<g ")[1]
    assert (first.count('class="interval"'), first.count("<circle")) == (1, 1)


def test_an_alarm_is_red(shown: str) -> None:
    assert '<h1 class="alarm">' in page("", "", "", (), is_alarm=True)
    assert '<h1 class="alarm">' not in shown


def test_each_colour_has_a_counterpart_for_a_dark_screen(shown: str) -> None:
    light, dark = shown.split("@media (prefers-color-scheme: dark)")
    assert all(colour in light for colour in ON_LIGHT)
    assert all(colour in dark for colour in ON_DARK)
    assert len(set(ON_LIGHT)) == len(set(ON_DARK)) == len(ON_LIGHT)


@pytest.mark.parametrize(("colours", "ground"), [(ON_LIGHT, 1.0), (ON_DARK, 0.006)], ids=["light", "dark"])
def test_every_colour_stands_out_from_its_ground(colours: tuple[str, ...], ground: float) -> None:
    """WCAG 2's contrast of graphics, 3 to 1."""
    for colour in colours:
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        brighter, darker = max(luminance, ground) + 0.05, min(luminance, ground) + 0.05
        assert brighter / darker >= 3, colour
