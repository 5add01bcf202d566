"""Read the JSON files of a model folder, one line of error where that fails, and its card."""

import json
import re
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

from kvlite.errors import BrokenModel

CONFIG = "config.json"
GENERATION = "generation_config.json"
# Any one of these is a tokenizer transformers can load, tokenizer_config.json alone for byte-level ones.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)
_CARDS = ("README.md", "MODEL_CARD.md")
_BASE = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)
_LICENSE = re.compile(r"^(license|license_name):[ \t]*[\"']?([^\"'#\n]+)", re.MULTILINE)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the folder's config.json. Raises BrokenModel when it is missing, not UTF-8, not JSON or not an object."""
    path = folder / CONFIG
    if not path.is_file():
        raise BrokenModel(f"{folder} holds no {CONFIG}, so it is no model folder; give the folder that holds one")
    config = read_object(path)
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) == BOM_UTF8:
            raise BrokenModel(
                f"{path} begins with a byte-order mark, which transformers does not read; save it without"
            )
    return config


def require_whole_object(path: Path) -> None:
    """Raise BrokenModel where a large JSON file does not begin and end as an object does: it may be cut off."""
    try:
        with path.open("rb") as file:
            begin = file.read(64).strip()
            file.seek(max(0, path.stat().st_size - 64))
            end = file.read().strip()
    except OSError as error:
        raise BrokenModel(f"{path} cannot be read: {error.strerror}") from error
    if not begin.startswith(b"{") or not end.endswith(b"}"):
        raise BrokenModel(f"{path} is no JSON object, or is cut off; get the file again")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object. Raises BrokenModel when it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BrokenModel(f"{path} is not UTF-8 (byte {error.start}); get the file again") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BrokenModel(f"{path} is not JSON ({error.msg} at {where}); get the file again") from error
    except (ValueError, RecursionError) as error:  # an integer too long, or nested too deep
        raise BrokenModel(f"{path} is not JSON that can be read ({error}); get the file again") from error
    except OSError as error:
        raise BrokenModel(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise BrokenModel(f"{path} holds a JSON {type(value).__name__}, not an object; get the file again")
    return value


def read_card(folder: Path) -> tuple[str | None, str]:
    """Read the licence that the model's card names, and the card without its front matter; (None, "") without one."""
    path = next((folder / name for name in _CARDS if (folder / name).is_file()), None)
    text = path.read_text(encoding="utf-8", errors="replace") if path else ""
    matter = ""
    if text.startswith("---\n"):
        matter, _, text = text[4:].partition("\n---")
    named = {field: value.strip() for field, value in _LICENSE.findall(matter)}
    licence = named.get("license")
    return (named.get("license_name", licence) if licence == "other" else licence), text.strip()


def base_model(folder: Path) -> str | None:
    """The repository that the model's card says it was made from, the first of several; None where it names none."""
    path = next((folder / name for name in _CARDS if (folder / name).is_file()), None)
    text = path.read_text(encoding="utf-8", errors="replace") if path else ""
    found = _BASE.search(text[4:].partition("\n---")[0]) if text.startswith("---\n") else None
    return found[1] if found else None


def has_tokenizer(folder: Path) -> bool:
    """True where the folder holds any file that a tokenizer can be built from."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
