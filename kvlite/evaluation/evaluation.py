"""Suites times variants on one model, measured in turn, with an estimate of the time that is left."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kvlite.errors import UsageError
from kvlite.evaluation.asking import converse
from kvlite.evaluation.conversation import Conversation
from kvlite.evaluation.journal import Journal, Result
from kvlite.evaluation.suites import ForcedText, Suite, dialogue_texts, file_texts, turn_tokens
from kvlite.evaluation.summary import Measured, Summary, summarise
from kvlite.evaluation.variant import REFERENCE, Placed, Variant

if TYPE_CHECKING:
    from kvlite.llm.text_model import TextModel

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
class Task:
    """A suite's `material` for a model; the longest conversation or text has `tokens` tokens as written.

    `identity` names the model's weights for the journal.
    """

    model: TextModel
    identity: str
    suite: Suite
    material: tuple[Conversation | ForcedText, ...]
    tokens: int

    @classmethod
    def of(cls, model: TextModel, suite: Suite, file: str | None = None) -> Task:
        """Write the suite for the model; forced text is `file` where that is given. Raises UsageError."""
        text, loaded, identity = model.text, model.loaded, model.files.identity()
        if not suite.is_forced:
            conversations = tuple(suite.conversations(text))
            if not any(each.probes for each in conversations):
                raise UsageError(f"{suite.name} asks nothing in {suite.length} tokens; give a longer --length")
            longest = max(sum(turn_tokens(text, each)) for each in conversations)
            return cls(model, identity, suite, conversations, longest)
        if loaded.state is not None:
            raise UsageError(
                f"{suite.name} compares two caches, and a {loaded.shape.family} model carries state besides"
            )
        texts = dialogue_texts(suite, text) if file is None else file_texts(suite, text, file)
        return cls(model, identity, suite, tuple(texts), max(len(forced.ids) for forced in texts))

    def place(self, variant: Variant, tokens: int) -> Placed:
        """The variant where the longest conversation has `tokens` tokens. Raises CapacityError."""
        window = self.model.loaded.window
        most = 2 * max(self.suite.length, self.tokens)  # a model may say more than the right answers
        return variant.place(self.model.loaded.shape, tokens, most if window is None else min(most, window))

    def unit(self, placed: Placed, number: int) -> dict[str, object]:
        """Everything that decides the result of one conversation or text, as the journal records it."""
        loaded, suite = self.model.loaded, self.suite
        return {
            "model": self.identity,
            "dtype": loaded.shape.dtype,
            "quant": loaded.quant,
            "device": loaded.device.type,
            "suite": {name: value for name, value in asdict(suite).items() if name != "count"}
            | {"name": suite.material},
            "content": hashlib.sha256(repr(self.material[number]).encode()).hexdigest()[:16],
            "think": self.model.text.think,
            "variant": placed.key(),
            "number": number,
        }

    def open(self, placed: Placed, rows: int) -> Measure:
        """Allocate what measuring under a variant takes. Raises OutOfMemory."""
        loaded, text, most = self.model.loaded, self.model.text, self.suite.max_tokens
        material: Any = self.material  # all of one kind, which the suite says
        engine = placed.open(loaded, rows)
        if not self.suite.is_forced:
            return lambda numbers, tell: converse(engine, text, [(n, material[n]) for n in numbers], most, tell)
        from kvlite.evaluation.scoring import score_texts

        full, bounded, chunk = engine, None, placed.plan.chunk
        if not placed.variant.is_reference:
            full, bounded = self.place(REFERENCE, self.tokens).open(loaded, rows), engine
        return lambda numbers, tell: score_texts(full, bounded, [(n, material[n]) for n in numbers], chunk, tell)


@dataclass(slots=True)
class Evaluation:
    """Measures `suites` under the full cache and `variants`, at most `most_rows` conversations at once.

    Where `one_by_one` is true, forced text is measured one token at a time besides each variant's own T. `file` is the
    user's own text for the forced suites. `tell` is called on the way: `done` of `total` conversations or texts are
    measured, each once under every variant, `kept` of them in the journal before.
    """

    model: TextModel
    suites: Sequence[Suite]
    variants: Sequence[Variant]
    journal: Journal
    file: str | None = None
    one_by_one: bool = True
    most_rows: int | None = None  # as many as are usual on the device
    tell: Callable[[Evaluation], None] = lambda evaluation: None
    doing: str = field(default="", init=False)
    total: int = field(default=0, init=False)
    done: float = field(default=0.0, init=False)
    kept: int = field(default=0, init=False)
    _since_s: float = field(default=0.0, init=False)
    _free_bytes: int = field(default=0, init=False)

    @property
    def left_s(self) -> float | None:
        """The seconds left, as long as one takes what they took so far; None before any was measured."""
        measured, took_s = self.done - self.kept, time.monotonic() - self._since_s
        return took_s / measured * (self.total - self.done) if measured else None

    def run(self) -> list[Summary]:
        """Measure everything.

        Raises CapacityError at once where a budget is too small, UsageError where a suite cannot be had.
        """
        from kvlite.models.device import free_bytes

        self._free_bytes = free_bytes(self.model.loaded.device)
        tasks: dict[str, Task] = {}
        for suite in self.suites:
            if suite.material not in tasks:
                tasks[suite.material] = Task.of(self.model, suite, self.file)
        self.total = sum(len(task.material) * len(self._placed(task, task.tokens)) for task in tasks.values())
        self._since_s = time.monotonic()
        found = {name: self._measure_all(task) for name, task in tasks.items()}
        shape = self.model.loaded.shape
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
            rows = self._rows(task, placed, len(missing))
            measure = task.open(placed, rows)
            for start in range(0, len(missing), rows):
                numbers, before = missing[start : start + rows], self.done
                results = measure(numbers, partial(self._tell, before))
                for number, result in zip(numbers, results, strict=True):
                    self.journal.keep(units[number], result)
                self.done = before + len(numbers)
        return placed, [found for unit in units if (found := self.journal.find(unit)) is not None]

    def _rows(self, task: Task, placed: Placed, wanted: int) -> int:
        """The number of conversations, of `wanted` ones, that run at once under a variant; at least one."""
        loaded, row_bytes = self.model.loaded, placed.plan.reserved_bytes
        if loaded.state is not None:
            return 1
        if task.suite.is_forced:
            row_bytes += task.place(REFERENCE, task.tokens).plan.reserved_bytes
            logit_bytes = max(placed.plan.chunk, 64) * loaded.shape.vocab * 4
            wanted = min(wanted, MOST_LOGIT_BYTES // logit_bytes)
        usual = ROWS_ON_GPU if loaded.device.type == "cuda" else ROWS_ON_CPU
        return max(1, min(wanted, self.most_rows or usual, self._free_bytes // CACHE_SHARE // row_bytes))

    def _tell(self, before: float, more: float) -> None:
        self.done = before + more
        self.tell(self)
