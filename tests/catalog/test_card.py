"""Model cards as people write them."""

from pathlib import Path

import pytest

from kvlite.catalog.config import read_card


@pytest.mark.parametrize(
    ("matter", "licence"),
    [
        ("license: mit", "mit"),
        ('license: "apache-2.0"  # ours', "apache-2.0"),
        ("license: other\nlicense_name: qwen-research\nlicense_link: https://x/y", "qwen-research"),
        ("license: other", "other"),
        ("language:\n- en", None),
        ("license:\n- mit", None),
    ],
)
def test_licence_of_the_front_matter(matter: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{matter}\n---\ntext")
    assert read_card(tmp_path) == (licence, "text")


@pytest.mark.parametrize(
    ("card", "read"),
    [
        ("---\nlicense: mit\n---\n\n# Tiny\n\nMore.\n", ("mit", "# Tiny\n\nMore.")),
        ("# Tiny\nlicense: mit", (None, "# Tiny\nlicense: mit")),
        ("---\nlicense: mit", ("mit", "")),
        ("", (None, "")),
        (None, (None, "")),
    ],
)
def test_the_text_is_what_follows_the_front_matter(
    card: str | None, read: tuple[str | None, str], tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "MODEL_CARD.md").write_text(card)
    assert read_card(tmp_path) == read
