"""The bytes that each token of a vocabulary stands for; a character may take several tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # how SentencePiece writes it


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes:
    """Find the bytes of a token; of a special one those of its name, of an id beyond the vocabulary none.

    Joined they are the UTF-8 of the text, in SentencePiece with the space before its first word; pieces of WordPiece
    are as the vocabulary writes them.
    """
    added = tokenizer.added_tokens_decoder.get(token_id)
    if added is not None:
        return str(added.content).encode()
    token = tokenizer.convert_ids_to_tokens(token_id)
    if isinstance(token, bytes):  # of vocabularies that are bytes themselves
        return token
    if not isinstance(token, str):
        return b""
    letters = _letters(tokenizer)
    if letters:
        return bytes(letters[letter] for letter in token if letter in letters)
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    return token.replace(_SPACE, " ").encode("utf-8", "replace")


@lru_cache(maxsize=4)
def _letters(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for; none of another vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or b"ByteLevel" not in decoder.__getstate__():
        return {}
    return {letter: byte for byte, letter in bytes_to_unicode().items()}
