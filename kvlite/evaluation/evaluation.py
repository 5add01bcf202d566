"""Suites times variants on one model, measured in turn, with an estimate of the time that is left."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from kvlite.cache.policy import load_policy
from kvlite.errors import UsageError
from kvlite.evaluation.journal import Journal, Result
from kvlite.evaluation.suites import EncodedItem, ForcedText, Suite
from kvlite.evaluation.summary import Measured, Summary, can_do, summarise
from kvlite.evaluation.variant import REFERENCE, Placed, Variant
from kvlite.record.verdicts import code_hash

if TYPE_CHECKING:
    from kvlite.llm.text_model import TextModel

ROWS_ON_CPU = 16
ROWS_ON_GPU = 64
"""Items that run at once where the user names no number."""

MOST_LOGIT_BYTES = 256 * 10**6
"""Of one pass over text that is scored, in float32, for one cache; rows run at once as long as they stay below."""

CACHE_SHARE = 4
"""The rows' caches take at most the free memory divided by this."""

PAST_WINDOW = Variant(load_policy("window"))
"""The reference for text that is longer than the model's window: as many of the last tokens as the window holds."""

Measure = Callable[[Sequence[int], Callable[[float], None]], Sequence[Result]]
"""Measures the items with these numbers, at most as many as rows; tells how many are done."""


_code = cache(code_hash)


@dataclass(frozen=True, slots=True)
class Task:
    """A suite's `material` for a model; the longest item or text has `tokens` tokens.

    `identity` names the model's weights for the journal.
    """

    model: TextModel
    identity: str
    suite: Suite
    material: tuple[EncodedItem | ForcedText, ...]
    tokens: int

    @classmethod
    def of(cls, model: TextModel, suite: Suite, prose: str | None = None) -> Task:
        """Write the suite for the model, in `prose` where that is given. Raises UsageError."""
        text, loaded, identity = model.text, model.loaded, model.files.identity()
        if not suite.is_forced:
            items = tuple(suite.items(text, prose))
            if not any(item.questions for item in items):
                raise UsageError(f"{suite.name} finds nothing to ask for in the text; give another --text")
            return cls(model, identity, suite, items, max(item.tokens for item in items))
        if loaded.state is not None:
            raise UsageError(
                f"{suite.name} compares two caches, and a {loaded.shape.family} model carries state besides"
            )
        texts = tuple(suite.texts(text, prose))
        return cls(model, identity, suite, texts, max(len(forced.ids) for forced in texts))

    @property
    def is_past_window(self) -> bool:
        """True for text that is longer than the model's window."""
        window = self.model.loaded.window
        return window is not None and self.tokens > window

    @property
    def reference(self) -> Placed:
        """The whole cache, or all that the model's window holds."""
        window = self.model.loaded.window
        most = self.tokens + (self.suite.max_tokens if self.suite.free else 0)
        if window is not None:
            most = min(most, window)
        return (PAST_WINDOW if self.is_past_window else REFERENCE).place(self.model, most)

    def unit(self, placed: Placed, number: int) -> dict[str, object]:
        """Everything that decides the result of one item or text, as the journal records it."""
        loaded, suite = self.model.loaded, self.suite
        return {
            "code": _code(),
            "model": self.identity,
            "dtype": loaded.shape.dtype,
            "quant": loaded.quant,
            "device": loaded.device.type,
            "suite": suite.material,
            "free": suite.max_tokens if suite.free else 0,
            "content": hashlib.sha256(repr(self.material[number]).encode()).hexdigest()[:16],
            "think": self.model.text.think,
            "variant": placed.key(),
            "number": number,
        }

    def open(self, placed: Placed, rows: int) -> Measure:
        """Allocate what measuring under a variant takes. Raises OutOfMemory."""
        loaded, text, suite = self.model.loaded, self.model.text, self.suite
        material: Any = self.material  # all of one kind, which the suite says
        engine, is_reference = placed.open(loaded, rows), placed.variant.is_reference
        if not suite.is_forced:
            from kvlite.evaluation.asking import ask

            free = suite.max_tokens if suite.free else 0
            return lambda numbers, tell: ask(
                engine, text, [(n, material[n]) for n in numbers], free, blind=is_reference, tell=tell
            )
        from kvlite.evaluation.scoring import score_texts

        full = None if is_reference or self.is_past_window else self.reference.open(loaded, rows)
        return lambda numbers, tell: score_texts(engine, full, [(n, material[n]) for n in numbers], tell)


@dataclass(slots=True)
class Evaluation:
    """Measures `suites` under the full cache and `variants`, at most `most_rows` items at once.

    A suite of which the full cache answers too little is measured no further. `prose` is the user's own text. `tell`
    is called on the way: `done` of `total` items or texts are measured, each once under every variant, `kept` of them
    in the journal before.
    """

    model: TextModel
    suites: Sequence[Suite]
    variants: Sequence[Variant]
    journal: Journal
    prose: str | None = None
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
                tasks[suite.material] = Task.of(self.model, suite, self.prose)
            if suite.name == "kl" and tasks[suite.material].is_past_window:
                raise UsageError("kl needs the whole cache, which ends with the model's window; give --suite ppl")
        placed = {name: self._placed(task) for name, task in tasks.items()}
        self.total = sum(len(task.material) * len(placed[name]) for name, task in tasks.items())
        self._since_s = time.monotonic()
        found = {name: self._measure_all(task, placed[name]) for name, task in tasks.items()}
        shape = self.model.loaded.shape
        return [
            summarise(suite, shape.full_cache_bytes(tasks[suite.material].tokens), found[suite.material])
            for suite in self.suites
        ]

    def _placed(self, task: Task) -> list[Placed]:
        """The reference and the variants."""
        return [task.reference, *(variant.place(self.model, task.tokens) for variant in self.variants)]

    def _measure_all(self, task: Task, placed: Sequence[Placed]) -> list[Measured]:
        """The reference; then the variants, where the model is up to the suite."""
        reference, *others = placed
        full = self._measure(task, reference)
        if not can_do(full[1]):
            self.total -= len(task.material) * len(others)
            others = []
        return [full, *(self._measure(task, each) for each in others)]

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
        """The number of items, of `wanted` ones, that run at once under a variant; at least one."""
        loaded, row_bytes = self.model.loaded, placed.plan.reserved_bytes
        if loaded.state is not None:
            return 1
        if task.suite.is_forced:
            row_bytes += task.reference.plan.reserved_bytes
        logit_bytes = 4 * loaded.shape.vocab * max(64, placed.plan.chunk if task.suite.is_forced else 0)
        wanted = min(wanted, MOST_LOGIT_BYTES // logit_bytes)
        usual = ROWS_ON_GPU if loaded.device.type == "cuda" else ROWS_ON_CPU
        return max(1, min(wanted, self.most_rows or usual, self._free_bytes // CACHE_SHARE // row_bytes))

    def _tell(self, before: float, more: float) -> None:
        self.done = before + more
        self.tell(self)
