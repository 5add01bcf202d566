"""Turn the ids of an answer into text to show, as they arrive: thinking apart, cut at stop strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING

from kvlite.errors import BrokenModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """Tags `open` and `close` around thinking; an answer without thinking may begin with `lead`.

    A model uses these tags where its added tokens or its template hold all `tokens` (empty: the two tags). `hidden`
    tokens stand around the answer and are no part of it.
    """

    open: str
    close: str
    lead: str = ""
    tokens: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
DEFAULT_TAGS = ThinkTags("<think>", "</think>")
_KNOWN_TAGS = (
    DEFAULT_TAGS,  # DeepSeek-R1, Qwen3, GLM-4.5 and most others
    ThinkTags("[THINK]", "[/THINK]"),  # Magistral
    ThinkTags(  # gpt-oss: channels, separated by control tokens
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        ("<|start|>", "<|channel|>", "<|message|>"),
    ),
    ThinkTags("<|channel>thought\n", "<channel|>", tokens=("<|channel>", "<channel|>")),  # Gemma 4
    ThinkTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThinkTags("<mm:think>", "</mm:think>"),  # MiniMax-M3
    ThinkTags("<thought>", "</thought>"),  # EXAONE Deep
    ThinkTags("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThinkTags(  # Command R7B and Command A
        "<|START_THINKING|>", "<|END_THINKING|>", hidden=("<|START_RESPONSE|>", "<|END_RESPONSE|>")
    ),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to show, of the answer or of the thinking before it."""

    text: str
    thinking: bool = False


def think_tags(tokenizer: PreTrainedTokenizerBase) -> ThinkTags | None:
    """Find the tags that this model's template or added tokens know; None if it does not think."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    template = str(tokenizer.chat_template or "")
    for tags in _KNOWN_TAGS:
        if all(token in known or token in template for token in tags.tokens or (tags.open, tags.close)):
            return tags
    return None


def stop_strings(generation: Mapping[str, object]) -> tuple[str, ...]:
    """The texts that end an answer by a generation_config.json. Raises BrokenModel where they are no texts."""
    value = generation.get("stop_strings") or []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise BrokenModel(f"generation_config.json: stop_strings is {value!r:.80}; expected texts")
    return tuple(texts)


class Part(Enum):
    """A part of an answer; START is the white space before it, after which thinking may begin."""

    START = auto()
    THINKING = auto()
    ANSWER = auto()


class AnswerText:
    """The text of one answer, which begins with the part `begins`.

    Stop strings, none of them empty, end the answer and are not part of it; they do not count inside thinking, nor
    before the answer has `min_tokens`. They may hold special tokens, which are no part of the text otherwise.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop: Sequence[str] = (),
        begins: Part = Part.ANSWER,
        min_tokens: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self._unstopped = min_tokens  # tokens to come before a stop string counts
        tags = None if begins is Part.ANSWER else think_tags(tokenizer) or DEFAULT_TAGS
        shown = tags.open + tags.close if tags else ""
        self._decoder = TokenDecoder(tokenizer, keep="\0".join((shown, *stop)))
        self._tags = tags or DEFAULT_TAGS
        self._stop = tuple(stop)
        specials = _specials(tokenizer, "\0".join(stop), but=shown).union(tags.hidden if tags else ())
        hidden = sorted(specials, key=len, reverse=True)
        self._hidden = re.compile("|".join(map(re.escape, hidden))) if hidden else None
        self._part = begins
        self._trims = begins is Part.THINKING  # white space beside a tag is not shown
        self._held = ""
        self._pieces: list[Piece] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """The answer so far, without thinking."""
        return "".join(piece.text for piece in self._pieces if not piece.thinking)

    @property
    def thinking(self) -> str:
        """The thinking so far, without its tags and the white space around it."""
        return "".join(piece.text for piece in self._pieces if piece.thinking).strip()

    @property
    def is_thinking(self) -> bool:
        """True until the thinking is closed."""
        return self._part is Part.THINKING

    def follow(self, token_id: int) -> None:
        """Take the id that comes before the first; its text was shown already."""
        self._decoder.push(token_id)

    def push(self, token_id: int) -> list[Piece]:
        """Take the next id and return the pieces it completes; none once a stop string was met."""
        self._unstopped -= 1
        return self._read(self._decoder.push(token_id), is_last=False)

    def finish(self) -> list[Piece]:
        """Return the pieces still held back; no id may follow."""
        return self._read(self._decoder.finish(), is_last=True)

    def _read(self, text: str, *, is_last: bool) -> list[Piece]:
        if self.stopped:
            return []
        self._held += text
        pieces = []
        part = None
        while part is not self._part and not self.stopped:  # until a step leaves the part as it is
            part = self._part
            if shown := self._visible(self._step(is_last)):
                pieces.append(Piece(shown, part is Part.THINKING))
        self._pieces += pieces
        return pieces

    def _visible(self, text: str) -> str:
        return text if self._hidden is None else self._hidden.sub("", text)

    def _step(self, is_last: bool) -> str:
        """Move on to the next part where the held text says so; return what can be shown of the present one."""
        if self._part is Part.START:
            self._start(is_last)
            return ""
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        if self._part is Part.ANSWER:
            stop = () if self._unstopped > 0 else self._stop
            shown, self.stopped = self._take_until(stop, is_last)
            return shown
        shown, is_closed = self._take_until((self._tags.close,), is_last)
        if is_closed:
            self._part, self._trims = Part.ANSWER, True
        return shown

    def _start(self, is_last: bool) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._tags.open):
            self._held = begun.removeprefix(self._tags.open)
            self._part, self._trims = Part.THINKING, True
        elif self._tags.lead and begun.startswith(self._tags.lead):
            self._held = begun.removeprefix(self._tags.lead)
            self._part = Part.ANSWER
        elif is_last or not (self._tags.open.startswith(begun) or self._tags.lead.startswith(begun)):
            self._part = Part.ANSWER

    def _take_until(self, ends: Sequence[str], is_last: bool) -> tuple[str, bool]:
        """Take the held text up to the first complete end; without one, all that cannot be the beginning of an end."""
        found = [(start + len(end), start) for end in ends if (start := self._held.find(end)) >= 0]
        if found:
            after, start = min(found)
            shown, self._held = self._held[:start], self._held[after:]
            return shown, True
        longest = 0 if is_last else min(len(self._held), max(map(len, ends), default=1) - 1)
        tails = (self._held[-size:] for size in range(longest, 0, -1))
        kept = next((tail for tail in tails if any(end.startswith(tail) for end in ends)), "")
        shown, self._held = self._held.removesuffix(kept), kept
        return shown, False


class TokenDecoder:
    """Decodes ids as they arrive to the text of `tokenizer.decode(..., skip_special_tokens=True)` for all of them.

    Special tokens that occur in `keep` are text, too. New tokens are decoded together with one before them, because
    SentencePiece drops the first token's space and WordPiece joins `##` pieces to the token before. Byte tokens
    (`<0xE4>`) wait for the end of their run, because one bad byte spoils the whole run. Added tokens of a byte-level
    vocabulary are text as they stand, not bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep: str = "") -> None:
        self._tokenizer = tokenizer
        self._skipped = _skipped_ids(tokenizer, keep)
        self._as_written = _written(tokenizer)
        self._ids: list[int] = []
        self._returned = 0  # characters of the text of `_ids`

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that it completes, often none."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str) or token_id in self._skipped:  # None: an id beyond the vocabulary
            return ""
        if token_id in self._as_written:
            text = self.finish() + self._as_written[token_id]
            self._ids, self._returned = [], 0
            return text
        self._ids.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._text()
        is_open = text.endswith("\ufffd")  # perhaps the first bytes of a character, at most three
        new = text[self._returned : len(text) - is_open]
        self._ids = self._ids[-4:] if is_open else [token_id]
        self._returned = len(self._text()) - is_open
        return new

    def finish(self) -> str:
        """Return the text still held back; no id may follow."""
        return self._text()[self._returned :]

    def _text(self) -> str:
        # Clean-up would rewrite text that is already on the screen ("a ' b" becomes "a'b").
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _specials(tokenizer: PreTrainedTokenizerBase, text: str, but: str) -> set[str]:
    """The special tokens that occur in `text` and not in `but`."""
    if not text:
        return set()
    added = tokenizer.added_tokens_decoder.values()
    return {token.content for token in added if token.special and token.content in text and token.content not in but}


@lru_cache(maxsize=4)
def _written(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, str]:
    """The texts of the added tokens of a byte-level vocabulary, whose decoder would take their letters for bytes."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or b"ByteLevel" not in decoder.__getstate__():
        return {}
    return {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}


@lru_cache(maxsize=4)  # some tokenizers list thousands, which takes longer than a short answer
def _skipped_ids(tokenizer: PreTrainedTokenizerBase, keep: str) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(token_id for token_id, token in added if token.special and token.content not in keep)
