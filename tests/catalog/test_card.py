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


def test_the_text_is_what_follows_the_front_matter() -> None:
    card = parse_card("---\nlicense: mit\n---\n\n# Tiny\n\nMore.\n")
    assert (card.text, card.license) == ("# Tiny\n\nMore.", "mit")
    assert parse_card("").text == ""
    assert parse_card("---\nlicense: mit").license == "mit"
