"""A slash command, and how its output is laid out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlite.chat.loop import Chat


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: its names, the canonical one first, and the function that runs it with its argument."""

    names: tuple[str, ...]
    argument: str
    summary: str
    run: Callable[[Chat, str], None]

    @property
    def usage(self) -> str:
        return " ".join(filter(None, ["/" + "|".join(self.names), self.argument]))


def show_pairs(chat: Chat, pairs: Sequence[tuple[str, str]]) -> None:
    """Show names and values in two columns."""
    width = max((len(name) for name, _ in pairs), default=0)
    columns = max(width + 24, shutil.get_terminal_size().columns)
    for name, value in pairs:
        chat.show(fill(f"  {name.ljust(width)}  {value}", columns, subsequent_indent=" " * (width + 4)))


def first_words(text: str, taken: int) -> str:
    """As much of the first line of `text` as fits the terminal behind `taken` columns."""
    from kvlite.chat.words import clipped

    return clipped(text.strip().split("\n")[0], max(8, shutil.get_terminal_size().columns - taken - 1))
