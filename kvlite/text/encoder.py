"""Encode rendered text to ids part by part, and find the ids that the tokenizer adds of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from kvlite.errors import UsageError
from kvlite.text.forgery import ForgedStrings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = "x.0a-"  # ordinary characters, at least one of which merges with nothing that follows


class Encoder:
    """Encode with one tokenizer; each part but the first is encoded as the continuation of other text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, forged: ForgedStrings) -> None:
        self._tokenizer = tokenizer
        self._anchors = [(anchor, self._ids(anchor)) for anchor in _ANCHORS if not forged.any_begins(anchor)]

    def encode(self, parts: Sequence[str], *, continues: bool = False) -> tuple[int, ...]:
        """Encode each part on its own and join the ids; special tokens in the parts are parsed, none is added.

        `continues`: the first part continues other text, too. Raises UsageError on half a surrogate pair.
        """
        if half := re.search("[\ud800-\udfff]", "".join(parts)):
            raise UsageError(f"the prompt has {half.group()!r}, half a surrogate pair, which is no character; drop it")
        known: dict[str, list[int]] = {}  # forged text is cut into many parts, most of them equal
        ids: list[int] = [] if continues else self._ids(parts[0])
        for part in parts if continues else parts[1:]:
            if part not in known:
                known[part] = self._ids_after(part)
            ids += known[part]
        return tuple(ids)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The ids that the tokenizer itself puts in front of a prompt, usually its BOS; none that it puts behind."""
        bare = self._ids("x")
        full = self._ids("x", add_special_tokens=True)
        starts = range(len(full) - len(bare) + 1)
        return tuple(full[: next((start for start in starts if full[start : start + len(bare)] == bare), 0)])

    def _ids_after(self, text: str) -> list[int]:
        """Encode text behind an anchor, so that SentencePiece puts no space in front of it."""
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


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> set[str]:
    """Collect the special tokens and the added tokens that the template writes."""
    written = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    }
    return written | set(tokenizer.all_special_tokens)


def head(parts: Sequence[str], length: int) -> list[str]:
    """Cut the parts off after `length` characters in all."""
    shortened = []
    for part in parts:
        shortened.append(part[:length])
        length -= len(part)
        if length <= 0:
            break
    return shortened


def common_start(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Count the ids that both begin with."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
