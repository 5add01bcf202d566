"""A suite on one model: its conversations or texts, and the measuring of a group of them under a placed variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.errors import UsageError
from kvlite.evaluation.asking import converse
from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.results import Result
from kvlite.evaluation.suites import ForcedText, Suite, dialogue_texts, file_texts, written_tokens
from kvlite.evaluation.variant import REFERENCE, Placed, Variant

if TYPE_CHECKING:
    from kvlite.llm.text_model import TextModel
    from kvlite.models.loaded import LoadedModel
    from kvlite.text.template import ChatText

ROWS_ON_CPU = 16
ROWS_ON_GPU = 64
"""Conversations that run at once where the user names no number."""

MOST_LOGIT_BYTES = 256 * 10**6
"""Of one pass over text that is scored, in float32, for one cache; rows run at once as long as they stay below."""

CACHE_SHARE = 4
"""The rows' caches take at most the free memory divided by this."""

Measure = Callable[[Sequence[int], Callable[[float], None]], Sequence[Result]]
"""Measures the conversations with these numbers, at most as many as rows; tells how many are done."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured.

    `identity` names its weights for the journal; at most `most_rows` conversations run at once, inside `free_bytes`.
    """

    loaded: LoadedModel
    text: ChatText
    identity: str
    most_rows: int
    free_bytes: int

    @classmethod
    def of(cls, model: TextModel, most_rows: int | None = None) -> Subject:
        """An open model, with at most `most_rows` rows, or as many as are usual on its device."""
        from kvlite.models.device import free_bytes

        device = model.loaded.device
        most_rows = most_rows or (ROWS_ON_GPU if device.type == "cuda" else ROWS_ON_CPU)
        return cls(model.loaded, model.text, model.files.identity(), most_rows, free_bytes(device))


@dataclass(frozen=True, slots=True)
class Task:
    """A suite's `material` for `subject`; the longest conversation or text has `tokens` tokens as written."""

    subject: Subject
    suite: Suite
    material: tuple[Conversation | ForcedText, ...]
    tokens: int

    @classmethod
    def of(cls, subject: Subject, suite: Suite, file: str | None = None) -> Task:
        """Write the suite for the model; forced text is `file` where that is given. Raises UsageError."""
        text, loaded = subject.text, subject.loaded
        if not suite.is_forced:
            conversations = tuple(suite.conversations(text))
            if not any(each.probes for each in conversations):
                raise UsageError(f"{suite.name} asks nothing in {suite.length} tokens; give a longer --length")
            return cls(subject, suite, conversations, max(written_tokens(text, each) for each in conversations))
        if loaded.state is not None:
            raise UsageError(
                f"{suite.name} compares two caches, and a {loaded.shape.family} model carries state besides"
            )
        texts = dialogue_texts(suite, text) if file is None else file_texts(suite, text, file)
        return cls(subject, suite, tuple(texts), max(len(forced.ids) for forced in texts))

    def place(self, variant: Variant, tokens: int) -> Placed:
        """The variant where the longest conversation has `tokens` tokens. Raises CapacityError."""
        window = self.subject.loaded.window
        most = 2 * max(self.suite.length, self.tokens)  # a model may say more than the right answers
        return variant.place(self.subject.loaded.shape, tokens, most if window is None else min(most, window))

    def unit(self, placed: Placed, number: int) -> dict[str, object]:
        """Everything that decides the result of one conversation or text, as the journal records it."""
        loaded = self.subject.loaded
        return {
            "model": self.subject.identity,
            "dtype": loaded.dtype_name,
            "quant": loaded.quant,
            "device": loaded.device.type,
            "suite": self.suite.key(),
            "content": self.material[number].key(),
            "think": self.subject.text.think,
            "variant": placed.key(),
            "number": number,
        }

    def rows(self, placed: Placed, wanted: int) -> int:
        """The number of conversations, of `wanted` ones, that run at once under a variant; at least one."""
        subject, row_bytes = self.subject, placed.plan.reserved_bytes
        if subject.loaded.state is not None:
            return 1
        if self.suite.is_forced:
            row_bytes += self.place(REFERENCE, self.tokens).plan.reserved_bytes
            logit_bytes = max(placed.plan.chunk, 64) * subject.loaded.shape.vocab * 4
            wanted = min(wanted, MOST_LOGIT_BYTES // logit_bytes)
        return max(1, min(wanted, subject.most_rows, subject.free_bytes // CACHE_SHARE // row_bytes))

    def open(self, placed: Placed, rows: int) -> Measure:
        """Allocate what measuring under a variant takes. Raises OutOfMemory."""
        subject, material = self.subject, self.material
        engine = placed.open(subject.loaded, rows)
        if not self.suite.is_forced:
            conversations = [item for item in material if isinstance(item, Conversation)]
            most = self.suite.max_tokens
            return lambda numbers, tell: converse(
                engine, subject.text, [(n, conversations[n]) for n in numbers], most, tell
            )
        from kvlite.evaluation.scoring import score_texts

        texts = [item for item in material if isinstance(item, ForcedText)]
        full, bounded = engine, None
        if not placed.variant.is_reference:
            full, bounded = self.place(REFERENCE, self.tokens).open(subject.loaded, rows), engine
        chunk = placed.plan.chunk
        return lambda numbers, tell: score_texts(full, bounded, [(n, texts[n]) for n in numbers], chunk, tell)
