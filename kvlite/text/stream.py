"""Turn the ids of an answer into text to show: thinking apart, cut at stop strings. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from kvlite.errors import UsageError
from kvlite.text.decoding import token_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """Tags `open` and `close` around thinking; an answer without thinking may begin with `lead`.

    A model uses these tags where its added tokens or its template hold all `tokens` (empty: the two tags).
    """

    open: str
    close: str
    lead: str = ""
    tokens: tuple[str, ...] = ()


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


class _Part(Enum):
    START = auto()  # nothing but white space yet: thinking may begin
    THINKING = auto()
    ANSWER = auto()


class AnswerText:
    """The text of one answer.

    `thinks`: the model may begin with thinking between its tags; `opened`: the prompt already opened them. Stop strings
    end the answer and are not part of it; they do not count inside thinking. Raises UsageError on an empty stop string.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop: Sequence[str] = (),
        thinks: bool = False,
        opened: bool = False,
    ) -> None:
        if "" in stop:
            raise UsageError("a stop string is empty; give at least one character")
        tags = (think_tags(tokenizer) or DEFAULT_TAGS) if thinks or opened else None
        self._decoder = token_decoder(tokenizer, keep=tags.open + tags.close if tags else "")
        self._tags = tags or DEFAULT_TAGS
        self._stop = tuple(stop)
        self._part = _Part.THINKING if opened else _Part.START if thinks else _Part.ANSWER
        self._trims = opened  # white space beside a tag is not shown
        self._held = ""
        self._answer: list[str] = []
        self._thinking: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """The answer so far, without thinking."""
        return "".join(self._answer)

    @property
    def thinking(self) -> str:
        """The thinking so far, without its tags and the white space around it."""
        return "".join(self._thinking).strip()

    @property
    def is_thinking(self) -> bool:
        """True until the thinking is closed."""
        return self._part is _Part.THINKING

    def push(self, token_id: int) -> list[Piece]:
        """Take the next id and return the pieces it completes; none once a stop string was met."""
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
            shown = self._step(is_last)
            if shown:
                thinking = part is _Part.THINKING
                (self._thinking if thinking else self._answer).append(shown)
                pieces.append(Piece(shown, thinking))
        return pieces

    def _step(self, is_last: bool) -> str:
        """Move on to the next part where the held text says so; return what can be shown of the present one."""
        if self._part is _Part.START:
            self._start(is_last)
            return ""
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        if self._part is _Part.THINKING:
            shown, found = self._take_until((self._tags.close,), is_last)
            if found:
                self._part, self._trims = _Part.ANSWER, True
            return shown
        shown, self.stopped = self._take_until(self._stop, is_last)
        return shown

    def _start(self, is_last: bool) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._tags.open):
            self._held = begun.removeprefix(self._tags.open)
            self._part, self._trims = _Part.THINKING, True
        elif self._tags.lead and begun.startswith(self._tags.lead):
            self._held = begun.removeprefix(self._tags.lead)
            self._part = _Part.ANSWER
        elif is_last or not (self._tags.open.startswith(begun) or self._tags.lead.startswith(begun)):
            self._part = _Part.ANSWER

    def _take_until(self, ends: Sequence[str], is_last: bool) -> tuple[str, bool]:
        """Take the held text up to the first complete end; without one, all that cannot be the beginning of an end."""
        found = [(start + len(end), start) for end in ends if (start := self._held.find(end)) >= 0]
        if found:
            after, start = min(found)
            shown, self._held = self._held[:start], self._held[after:]
            return shown, True
        kept = 0 if is_last else _open_end(self._held, ends)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown, False


def _open_end(text: str, ends: Sequence[str]) -> int:
    """Count the last characters of `text` that may begin one of `ends`."""
    longest = min(len(text), max(map(len, ends), default=1) - 1)
    return next((size for size in range(longest, 0, -1) if any(end.startswith(text[-size:]) for end in ends)), 0)
