"""The model card: its text and its licence. Reads just enough of the front matter for that."""

import re
from dataclasses import dataclass
from pathlib import Path

CARD = "README.md"
DEMO_CARD = "MODEL_CARD.md"
_FIELD = re.compile(r"(license|license_name):\s*[\"']?([^\"'#\n]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Card:
    """A model card: the text without front matter, and the licence."""

    text: str = ""
    license: str | None = None


def read_card(folder: Path) -> Card:
    """Read the card of a model folder; an empty one when there is none."""
    path = next((folder / name for name in (CARD, DEMO_CARD) if (folder / name).is_file()), None)
    return parse_card(path.read_text(encoding="utf-8", errors="replace")) if path else Card()


def parse_card(text: str) -> Card:
    """Split a card into front matter and text."""
    matter, body = "", text
    if text.startswith("---\n"):
        matter, _, body = text[4:].partition("\n---")
    fields = {match[1]: match[2].strip() for line in matter.splitlines() if (match := _FIELD.match(line))}
    licence = fields.get("license")
    if licence == "other":
        licence = fields.get("license_name", licence)
    return Card(body.strip(), licence)
