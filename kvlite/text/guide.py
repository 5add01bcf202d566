"""Tell, as an answer is written, which tokens may come next by a grammar; thinking before it is free."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from kvlite.errors import UsageError
from kvlite.text.grammar import Grammar
from kvlite.text.stream import AnswerText, Part, think_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_COMPILED = 128  # grammars that are kept, of lines that may have one each


class Guides:
    """Guides for the answers of one model, whose answers end with `stop_ids`; each grammar is compiled once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = sorted(token for token in stop_ids if token < len(tokenizer))
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    def of(self, grammar: Grammar, begins: Part) -> Callable[[], Guide]:
        """Make what makes a guide of an answer that begins with the part `begins`.

        Raises UsageError where the model has no tokenizer that llguidance can read.
        """
        if grammar not in self._compiled:
            from llguidance import LLMatcher

            self._compiled[grammar] = LLMatcher(self._vocabulary, grammar.words, log_level=0)
            if len(self._compiled) > NUM_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return partial(Guide, self._compiled[grammar], self, begins)

    @cached_property
    def free(self) -> bytes:
        """The mask of thinking: all ids but those that would end the answer."""
        mask = bytearray(b"\xff" * (self._vocabulary.vocab_size // 8 + 1))
        for token in self._stop_ids:
            mask[token >> 3] &= ~(1 << (token & 7))
        return bytes(mask)

    @cached_property
    def openings(self) -> tuple[tuple[tuple[int, ...], Part], ...]:
        """The ids that may come before the grammar, each with the part that they open."""
        tags = think_tags(self._tokenizer)
        if tags is None:
            return ()
        return tuple(
            (tuple(self._tokenizer.encode(text, add_special_tokens=False)), part)
            for text, part in ((tags.open, Part.THINKING), (tags.lead, Part.ANSWER))
            if text
        )

    def thinking(self) -> AnswerText:
        """A reader of thinking, which says when it is closed."""
        return AnswerText(self._tokenizer, begins=Part.THINKING)

    def ids(self, text: str) -> list[int]:
        """Encode text that a token held behind the end of the thinking."""
        return list(self._vocabulary.tokenize_str(text))

    @cached_property
    def _vocabulary(self) -> Any:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(cast(Any, self._tokenizer), eos_token=self._stop_ids)
        except Exception as error:  # llguidance raises whatever its parts do
            reason = str(error).partition("\n")[0]
            raise UsageError(f"answers of this model cannot follow a grammar: its tokenizer: {reason}") from error


class Guide:
    """The tokens that may come next in one answer: thinking until it is closed, then what `compiled` says."""

    def __init__(self, compiled: Any, guides: Guides, begins: Part) -> None:
        self._matcher = compiled.deep_copy()
        self._guides = guides
        self._openings: Sequence[tuple[tuple[int, ...], Part]] = guides.openings if begins is Part.START else ()
        self._num_said = 0
        self._is_grammar = True  # what came so far may belong to it
        self._thinking = guides.thinking() if begins is Part.THINKING else None

    @property
    def is_over(self) -> bool:
        """True where no token may come any more."""
        return self._thinking is None and self._is_grammar and bool(self._matcher.is_stopped())

    @property
    def error(self) -> UsageError | None:
        """The reason why it can no longer tell what may come: the grammar has grown beyond llguidance's limits."""
        if not self._matcher.is_error():
            return None
        reason = self._matcher.get_error().partition("\n")[0]
        return UsageError(f"the grammar cannot be followed further: {reason}")

    def mask(self) -> bytes | None:
        """A bit for each id, that of id 0 the lowest of the first byte."""
        if self._thinking is not None:
            return self._guides.free
        allowed = bytes(self._matcher.compute_bitmask()) if self._is_grammar else b"\0" * len(self._guides.free)
        if not self._openings:
            return allowed
        mask = bytearray(allowed)
        for ids, _ in self._openings:
            token = ids[self._num_said]
            mask[token >> 3] |= 1 << (token & 7)
        return bytes(mask)

    def accept(self, token: int) -> None:
        """Take the token that came."""
        if self._thinking is not None:
            self._thinking.push(token)
            if not self._thinking.is_thinking:
                rest = self._guides.ids(self._thinking.text)
                self._thinking = None
                self._matcher.consume_tokens(rest)
        elif self._openings:
            self._open(token)
        else:
            self._matcher.consume_token(token)

    def _open(self, token: int) -> None:
        """Take a token of what opens the thinking, or of the answer where it is none of those."""
        self._is_grammar = self._is_grammar and self._matcher.try_consume_tokens([token]) == 1
        self._openings = [one for one in self._openings if one[0][self._num_said] == token]
        self._num_said += 1
        for ids, part in self._openings:
            if len(ids) == self._num_said:
                self._openings, self._is_grammar = (), True
                self._matcher.reset()
                self._thinking = self._guides.thinking() if part is Part.THINKING else None
                return
