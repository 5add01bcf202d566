"""The page needs nothing but itself, says who is drawn how, and escapes what it did not write."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from kvlite.evaluation.page import ON_DARK, ON_LIGHT, report_page
from kvlite.evaluation.report import Report
from kvlite.evaluation.view import kinds_table
from tests.evaluation.results import answered, scored, summary

VERSIONS = {"kvlite": "1", "torch": "2", "transformers": "3"}


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
def page() -> str:
    recall = summary(
        answered([[True] * 4] * 6, ("name", "<list>")),
        {(policy, budget): answered([[True, False]] * 6) for policy in ("window", "h2o") for budget in ("20%", "50%")},
    )
    kl = summary(scored([0.0] * 4), {("window", "50%"): scored([0.3, 0.1, 0.2, 0.9])}, "kl")
    return report_page(Report("<b>model</b>", "m", "float32", "none", "cpu", VERSIONS, (recall, kl)))


def test_it_loads_nothing_and_runs_nothing(page: str) -> None:
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\(|\son[a-z]+=", page)


def test_what_comes_from_elsewhere_is_escaped(page: str) -> None:
    assert "<b>model</b>" not in page and "&lt;b&gt;model&lt;/b&gt;" in page
    assert "<list>" not in page and "&lt;list&gt; (12)" in page


def test_every_element_is_closed_and_every_plot_is_there(page: str) -> None:
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []
    assert nesting.seen.count("figure") == 4
    assert nesting.seen.count("table") == 3


def test_every_curve_is_in_the_legend_in_its_colour(page: str) -> None:
    recall = page.split("<h2>")[1]
    legend, drawing = recall.split("</ul>")
    named = dict(re.findall(r'class="c(\d)".*?</svg>([^<]+)</li>', legend))
    assert named == {"0": "full", "1": "window", "2": "h2o"}
    assert set(re.findall(r'<g class="c(\d)">', drawing)) == set(named)


def test_each_colour_has_a_twin_for_a_dark_screen(page: str) -> None:
    light, dark = page.split("@media (prefers-color-scheme: dark)")
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


def test_the_table_by_kind_has_a_column_per_kind_and_a_row_per_variant() -> None:
    found = kinds_table(summary(answered([[True] * 4]), {("window", "50%"): answered([[True, False, True, False]])}))
    assert found is not None
    assert found.columns == ("POLICY", "BUDGET", "list (2)", "name (2)")
    assert [row[0] for row in found.rows] == ["full", "window"]
    assert found.rows[1][2:] == ("0% [0-66]", "100% [34-100]")
