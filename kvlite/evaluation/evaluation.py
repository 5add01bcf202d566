"""Suites times variants on one model, measured in turn, with an estimate of the time that is left."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from kvlite.errors import UsageError
from kvlite.evaluation.asking import converse
from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.journal import Journal, Result
from kvlite.evaluation.suites import ForcedText, Suite, dialogue_texts, file_texts, turn_tokens
from kvlite.evaluation.summary import Measured, Summary, summarise
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
            return cls(subject, suite, conversations, max(sum(turn_tokens(text, each)) for each in conversations))
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
        loaded, suite = self.subject.loaded, self.suite
        return {
            "model": self.subject.identity,
            "dtype": loaded.shape.dtype,
            "quant": loaded.quant,
            "device": loaded.device.type,
            "suite": {name: value for name, value in asdict(suite).items() if name != "count"}
            | {"name": suite.material},
            "content": hashlib.sha256(repr(self.material[number]).encode()).hexdigest()[:16],
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


@dataclass(slots=True)
class Evaluation:
    """Measures `suites` under the full cache and `variants`.

    Where `one_by_one` is true, forced text is measured one token at a time besides each variant's own T. `file` is the
    user's own text for the forced suites. `tell` is called on the way: `done` of `total` conversations or texts are
    measured, each once under every variant, `kept` of them in the journal before.
    """

    subject: Subject
    suites: Sequence[Suite]
    variants: Sequence[Variant]
    journal: Journal
    file: str | None = None
    one_by_one: bool = True
    tell: Callable[[Evaluation], None] = lambda evaluation: None
    doing: str = field(default="", init=False)
    total: int = field(default=0, init=False)
    done: float = field(default=0.0, init=False)
    kept: int = field(default=0, init=False)
    _since_s: float = field(default=0.0, init=False)

    @property
    def left_s(self) -> float | None:
        """The seconds left, as long as one takes what they took so far; None before any was measured."""
        measured, took_s = self.done - self.kept, time.monotonic() - self._since_s
        return took_s / measured * (self.total - self.done) if measured else None

    def run(self) -> list[Summary]:
        """Measure everything.

        Raises CapacityError at once where a budget is too small, UsageError where a suite cannot be had.
        """
        tasks: dict[str, Task] = {}
        for suite in self.suites:
            if suite.material not in tasks:
                tasks[suite.material] = Task.of(self.subject, suite, self.file)
        self.total = sum(len(task.material) * len(self._placed(task, task.tokens)) for task in tasks.values())
        self._since_s = time.monotonic()
        found = {name: self._measure_all(task) for name, task in tasks.items()}
        shape = self.subject.loaded.shape
        return [summarise(suite, shape, found[suite.material]) for suite in self.suites]

    def _placed(self, task: Task, tokens: int) -> list[Placed]:
        """The reference and the variants; forced text at every T that is asked for."""
        variants = list(self.variants)
        if task.suite.is_forced and self.one_by_one:
            variants = [each for given in variants for each in (given, replace(given, chunk_limit=1))]
        placed = [task.place(variant, tokens) for variant in (REFERENCE, *variants)]
        return list({str((each.key(), each.variant.budget)): each for each in placed}.values())

    def _measure_all(self, task: Task) -> list[Measured]:
        """The reference, whose longest conversation the shares are of; then the variants."""
        reference, *expected = self._placed(task, task.tokens)
        full = self._measure(task, reference)
        placed = self._placed(task, max(result.tokens for result in full[1]))[1:]
        self.total += len(task.material) * (len(placed) - len(expected))
        return [full, *(self._measure(task, each) for each in placed)]

    def _measure(self, task: Task, placed: Placed) -> Measured:
        """One variant; what the journal holds is not measured again."""
        self.doing = f"{task.suite.name}, {placed.variant.name}, {placed.budget_text}"
        units = [task.unit(placed, number) for number in range(len(task.material))]
        missing = [number for number, unit in enumerate(units) if self.journal.find(unit) is None]
        self.kept += len(units) - len(missing)
        self._tell(self.done, len(units) - len(missing))
        if missing:
            rows = task.rows(placed, len(missing))
            measure = task.open(placed, rows)
            for start in range(0, len(missing), rows):
                numbers, before = missing[start : start + rows], self.done
                results = measure(numbers, partial(self._tell, before))
                for number, result in zip(numbers, results, strict=True):
                    self.journal.keep(units[number], result)
                self.done = before + len(numbers)
        return placed, [found for unit in units if (found := self.journal.find(unit)) is not None]

    def _tell(self, before: float, more: float) -> None:
        self.done = before + more
        self.tell(self)
