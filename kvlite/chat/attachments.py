"""Files in a message: `@notes.txt` in what is typed stands for the file's text, which follows the message."""

from __future__ import annotations

import re
from pathlib import Path

from kvlite.errors import UsageError

_MENTION = re.compile(r"(?<!\S)@(\"[^\"]+\"|\S+)")
MOST_BYTES = 10**7


def file_text(name: str) -> str:
    """The text of a file. Raises UsageError where there is none, or it is no text."""
    path = Path(name).expanduser()
    try:
        data = path.read_bytes() if path.stat().st_size <= MOST_BYTES else None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    if data is None:
        raise UsageError(f"{name} has more than {MOST_BYTES // 10**6} MB; give a smaller file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{name} is no text in UTF-8") from None
    if "\0" in text:
        raise UsageError(f"{name} is no text")
    return text


def fenced(name: str, text: str) -> str:
    """A file as part of a message: its name, and its text in a fence that nothing in it ends."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{name}:\n{fence}\n{text.removesuffix(chr(10))}\n{fence}"


def with_files(message: str) -> tuple[str, list[str]]:
    """Add the text of the files that `message` names with `@`, and give their names; no file, and it is just a word."""
    named = [name for name in _mentioned(message) if Path(name).expanduser().is_file()]
    return "\n\n".join([message, *(fenced(name, file_text(name)) for name in named)]), named


def missing_files(message: str) -> list[str]:
    """The files that `message` seems to name with `@`, by a dot or slash in the name, where there are none."""
    names = [name for name in _mentioned(message) if re.search(r"[./]\w", name)]
    return [name for name in names if not Path(name).expanduser().is_file()]


def _mentioned(message: str) -> list[str]:
    return [*dict.fromkeys(name.strip('"') for name in _MENTION.findall(message))]
