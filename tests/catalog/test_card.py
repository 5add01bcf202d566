"""Model cards as people write them."""

import pytest

from kvlite.catalog.card import parse_card


@pytest.mark.parametrize(
    ("matter", "licence"),
    [
        ("license: mit", "mit"),
        ('license: "apache-2.0"  # ours', "apache-2.0"),
        ("license: other\nlicense_name: qwen-research\nlicense_link: https://x/y", "qwen-research"),
        ("language:\n- en", None),
    ],
)
def test_licence_of_the_front_matter(matter: str, licence: str | None) -> None:
    assert parse_card(f"---\n{matter}\n---\ntext").license == licence


@pytest.mark.parametrize(
    "before",
    [
        "# Title",
        "<p align='center'>\n<img src='x'>\n</p>",
        "[![badge](x)](y)",
        "![picture](x)",
        "| a | b |\n|---|---|",
        "- a list",
        "```sh\ncode\n\nmore code\n```",
        "<!-- a\n\ncomment -->",
    ],
)
def test_summary_is_the_first_prose(before: str) -> None:
    assert parse_card(f"{before}\n\n**Tiny** is\na [model](x).\n\nMore.").summary == "**Tiny** is a [model](x)."


def test_card_without_prose_has_no_summary() -> None:
    assert parse_card("# Only a title").summary == ""
    assert parse_card("").text == ""
    assert parse_card("---\nlicense: mit").license == "mit"
