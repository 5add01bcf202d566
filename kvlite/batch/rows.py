"""The rows that answer a batch: an engine whose cache is made for the lines that wait, and anew where others follow."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kvlite.errors import CapacityError
from kvlite.llm.banner import banner
from kvlite.llm.spec import BatchSize
from kvlite.llm.text_model import Allocated, TextModel
from kvlite.memory.fit import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvlite.console import Console
    from kvlite.engine.engine import Engine
    from kvlite.llm.text_model import Told
    from kvlite.memory.plan import CachePlan


class BatchRows:
    """Rows for the lines of a batch, inside the KV budget; `opened` is told once there are some.

    As many processes as `sharers` divide the device's free memory among themselves.

    Raises CapacityError where the budget or the device does not hold one row.
    """

    def __init__(
        self,
        model: TextModel,
        batch_size: BatchSize,
        console: Console | Told,
        opened: Callable[[Allocated], None],
        sharers: int = 1,
    ) -> None:
        self.model = model
        self._batch_size, self._console, self._opened = batch_size, console, opened
        self._fit = model.fit(batch_size, sharers)
        self._allocated: Allocated | None = None
        budget = model.spec.budget
        self._plan = lru_cache(maxsize=64)(lambda *wanted: self._fit.rows(budget, *wanted))
        self.most_slots: int = self._plan(LONGEST, 1).slots
        """Tokens that one row may hold."""

    @property
    def engine(self) -> Engine:
        """The engine; there is none before the first `fit`."""
        assert self._allocated is not None, "no line has asked for rows yet"
        return self._allocated.engine

    @property
    def budget_bytes(self) -> int:
        """The KV budget; 0 before the first `fit`."""
        return 0 if self._allocated is None else self.engine.plan.budget_bytes

    def count(self, slots: int, lines: int) -> int:
        """Count the rows of so many slots that there can be for so many lines."""
        return int(self._plan(slots, lines).rows)

    def fit(self, slots: int, lines: int, shared: int = 0) -> None:
        """Make rows of `slots` for `lines`, and room for `shared` tokens; what was in others is lost.

        Raises CapacityError.
        """
        while True:
            plan = self._plan(slots, lines, shared)
            try:
                if self._allocated is None:
                    self._open(plan, lines)
                elif plan != self.engine.plan:
                    self.engine.rows.resize(plan)
                    self._console.detail(self._summary(plan, lines))
                return
            except CapacityError:
                if plan.rows == 1 or self._allocated is None:
                    raise
                lines = plan.rows // 2  # memory was freer when the batch began

    def _open(self, plan: CachePlan, lines: int) -> None:
        self._allocated = Allocated(self.model.engine(self._fit, plan), self._fit, self._batch_size)
        self._opened(self._allocated)
        self._console.note(banner(self.model, self._allocated))
        self._console.note(self._summary(plan, lines))

    def _summary(self, plan: CachePlan, lines: int) -> str:
        """Say how many rows there are and what ends them: lines, the user, the device or the budget."""
        if plan.rows >= lines:
            why = "one for each line that waits"
        elif plan.rows < self._fit.most_rows:
            few = "; a smaller --kv-per-seq lets more run at once" if plan.rows < 2 else ""
            why = f"as many as the KV budget holds{few}"
        elif self._fit.shape.has_state:
            why = f"{self._fit.shape.family} models run one at a time"
        else:
            why = "as many as pay on this device" if self._batch_size == "auto" else "as --batch-size says"
        return f"{plan.rows} answers at once, of up to {plan.slots:,} tok with their prompts: {why}"
