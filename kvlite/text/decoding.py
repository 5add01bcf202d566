"""Decode ids to text as they arrive: never half a character, in time linear in the length of the answer."""

from __future__ import annotations

import codecs
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_LONGEST_WAIT = 8  # tokens; a UTF-8 character has at most 4 bytes


def token_decoder(tokenizer: PreTrainedTokenizerBase, keep: str = "") -> ByteLevelDecoder | WindowDecoder:
    """Make the decoder for one answer, to the text of `tokenizer.decode(..., skip_special_tokens=True)` for all of it.

    Special tokens that occur in `keep` are text, too. `push` takes the next id and returns the text that it completes,
    often none; `finish` returns the text still held back, and no id may follow.
    """
    decoder = ByteLevelDecoder if _is_byte_level(tokenizer) else WindowDecoder
    return decoder(tokenizer, _skipped_ids(tokenizer, keep))


class ByteLevelDecoder:
    """Decoder for byte-level BPE (GPT-2, Llama 3, Qwen): tokens are strings of bytes, decoded as they arrive."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._bytes = _byte_alphabet()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str) or token_id in self._skipped:  # None: an id beyond the vocabulary
            return ""
        try:
            spelled = bytes(self._bytes[character] for character in token)
        except KeyError:  # an added token, written as it is
            spelled = token.encode()
        return self._utf8.decode(spelled)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDecoder:
    """Decoder for every other tokenizer: it decodes new tokens together with the token before them and cuts that off.

    SentencePiece drops the first token's space and WordPiece joins `##` pieces to the token before, so one token of
    context is enough. Byte tokens (`<0xE4>`) wait for the end of their run, because one bad byte spoils the whole run.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._context: list[int] = []
        self._context_chars = 0
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str) or token_id in self._skipped:  # None: an id beyond the vocabulary
            return ""
        self._waiting.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._decode(self._context + self._waiting)
        if text.endswith("\ufffd") and len(self._waiting) < _LONGEST_WAIT:
            return ""
        new = text[self._context_chars :]
        self._context = [token_id]
        self._context_chars = len(self._decode(self._context))
        self._waiting = []
        return new

    def finish(self) -> str:
        text = self._decode(self._context + self._waiting)[self._context_chars :] if self._waiting else ""
        self._waiting = []
        return text

    def _decode(self, ids: list[int]) -> str:
        # Clean-up would rewrite text that is already on the screen ("a ' b" becomes "a'b").
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=4)  # some tokenizers list thousands, which takes longer than a short answer
def _skipped_ids(tokenizer: PreTrainedTokenizerBase, keep: str) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(token_id for token_id, token in added if token.special and token.content not in keep)


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [step["type"] for step in steps if step["type"] != "Fuse"] == ["ByteLevel"]


def _byte_alphabet() -> dict[str, int]:
    """Map GPT-2's printable stand-ins to the bytes they stand for."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
