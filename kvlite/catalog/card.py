"""The model card: its licence and first paragraph. Reads just enough of the front matter for that."""

import re
from dataclasses import dataclass
from pathlib import Path

CARD = "README.md"
DEMO_CARD = "MODEL_CARD.md"
_FIELD = re.compile(r"(license|license_name):\s*[\"']?([^\"'#\n]+)", re.ASCII)
_NOT_PROSE = re.compile(r"[#<>|!\[`*+=-]|\d+\. ")


@dataclass(frozen=True, slots=True)
class Card:
    """A model card: the whole text without front matter, its first paragraph of prose, its licence."""

    text: str = ""
    summary: str = ""
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
    return Card(body.strip(), _first_paragraph(body), licence)


def _first_paragraph(body: str) -> str:
    for block in re.split(r"\n\s*\n", re.sub(r"```.*?(```|\Z)|<!--.*?(-->|\Z)", "", body, flags=re.DOTALL)):
        lines = [line.strip() for line in block.strip().splitlines()]
        if lines and not _NOT_PROSE.match(lines[0].replace("**", "").replace("[", "", 1)):
            return " ".join(lines)
    return ""
