"""Rendered text to ids, part by part, and what the tokenizer adds of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from kvlite.text.forgery import ForgedStrings
from kvlite.text.thinking import ThinkTags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = "x.0a-"  # ordinary characters; one of them merges with nothing that follows


class Encoder:
    """Encodes with one tokenizer; parts after the first go on after other text, as far as the tokenizer can tell."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, forged: ForgedStrings) -> None:
        self._tokenizer = tokenizer
        self._anchors = [(anchor, self._ids(anchor)) for anchor in _ANCHORS if not forged.any_begins(anchor)]

    def joined(self, parts: Sequence[str], *, continues: bool = False) -> tuple[int, ...]:
        """The ids of parts that must not be encoded as one; special tokens in them are parsed, none is added.

        `continues`: the first part goes on after other text, too.
        """
        known: dict[str, list[int]] = {}  # forged text is cut into many parts, most of them alike
        ids: list[int] = [] if continues else self._ids(parts[0])
        for part in parts if continues else parts[1:]:
            if part not in known:
                known[part] = self._ids_after(part)
            ids += known[part]
        return tuple(ids)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """What the tokenizer itself puts in front of a prompt, usually its BOS; what it puts behind is not wanted."""
        bare = self._ids("x")
        full = self._ids("x", add_special_tokens=True)
        starts = range(len(full) - len(bare) + 1)
        return tuple(full[: next((start for start in starts if full[start : start + len(bare)] == bare), 0)])

    def _ids_after(self, text: str) -> list[int]:
        """The ids of text behind an anchor, so without the space SentencePiece puts in front of a text."""
        for anchor, head_ids in self._anchors:
            ids = self._ids(anchor + text)
            if ids[: len(head_ids)] == head_ids:
                return ids[len(head_ids) :]
        return self._ids(text)

    def _ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=False, verbose=False
        )
        return list(encoded["input_ids"])


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str, tags: ThinkTags | None) -> set[str]:
    """The special tokens, and the added tokens the template writes, except those around thinking."""
    written = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    }
    return (written | set(tokenizer.all_special_tokens)) - ({tags.open, tags.close} if tags else set())


def head(parts: Sequence[str], length: int) -> list[str]:
    """The parts up to `length` characters."""
    shortened = []
    for part in parts:
        shortened.append(part[:length])
        length -= len(part)
        if length <= 0:
            break
    return shortened


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    differing = (index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(differing, min(len(first), len(second)))
