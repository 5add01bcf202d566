"""Limits on what a row is fed: pins against slots, the model's window, full slots; each error says what to do."""

from __future__ import annotations

from dataclasses import dataclass

from kvlite.cache.cache import SlotCache
from kvlite.cache.policy import DEFAULT_POLICY, Policy
from kvlite.engine.request import Request
from kvlite.engine.row import Row
from kvlite.errors import BudgetTooSmall, ContextFull, KvliteError, UsageError
from kvlite.memory.format import short_size
from kvlite.memory.plan import CachePlan


@dataclass(frozen=True, slots=True)
class Limits:
    """`window` is the model's positions, None where it has none; `can_rotate` says whether keys move back inside it.

    `vocab` is the number of tokens that the model has an embedding for.
    """

    cache: SlotCache
    vocab: int
    window: int | None
    can_rotate: bool
    on_full: str

    def refusal(self, row: Row, request: Request) -> KvliteError | None:
        """The error of a request that cannot be served, before anything of it is fed; None where it can."""
        tokens = len(request.ids) + (row.unfed is not None)
        if (largest := max(request.ids)) >= self.vocab:
            return UsageError(
                f"the prompt has the token {largest}, which the model has no embedding for (it has {self.vocab}); "
                "leave out the text that is this token"
            )
        if (biased := max((token for token, _ in request.sampling.logit_bias), default=0)) >= self.vocab:
            return UsageError(f"logit_bias has the token {biased}; the model has {self.vocab}")
        evicts = row.needs(request) > self.cache.plan.fewest  # else pins cost nobody a slot
        if evicts and (crowded := self.crowding(row, request.pins)) is not None:
            return crowded
        if self._ends_at is not None and row.seen + tokens > self._ends_at:
            return ContextFull(
                f"{row.seen + tokens} tokens exceed the model's {self._ends_at} positions, which cannot be re-rotated; "
                "shorten the prompt or start over"
            )
        room = self.cache.room(row.index)
        if self.on_full != "evict" and tokens > room:
            return ContextFull(f"the prompt needs {tokens} more slots and there is room for {room}; {self._way_on}")
        return None

    def crowding(
        self,
        row: Row,
        pins: tuple[tuple[int, int], ...],
        plan: CachePlan | None = None,
        policy: Policy | None = None,
    ) -> BudgetTooSmall | None:
        """The error of a row whose pins, with `pins` of its next ids, leave no room; None where they leave some.

        In the cache of another `plan` and `policy` where they are given.
        """
        plan, policy = plan or self.cache.plan, policy or self.cache.policy
        spans = (*row.pins, *row.placed(pins))
        pinned = {position for start, end in spans for position in range(max(start, policy.sinks), end)}
        needed = policy.min_slots(len(pinned))
        if not policy.evicts or needed <= plan.fewest:
            return None
        if needed > plan.most_slots:
            return BudgetTooSmall(
                f"the model's window has room for {plan.most_slots} tokens but {needed} are pinned, sinks or recent; "
                "shorten the system prompt, or give --no-pin-system"
            )
        return BudgetTooSmall(
            f"the KV budget holds {plan.fewest} tokens but {needed} are pinned, sinks or recent; "
            f"give --kv-budget {short_size(self.cache.bytes_for(needed), up=True)} or more, or --no-pin-system"
        )

    def end(self, row: Row) -> ContextFull | None:
        """The error of a row that takes no more token, None where it takes one."""
        if self._ends_at is not None and row.rot >= self._ends_at:
            return ContextFull(f"the model's {self._ends_at} positions are used up and do not re-rotate; start over")
        if self.on_full == "evict" or self.cache.room(row.index) > 0:
            return None
        return ContextFull(f"all {self.cache.plan.fewest} slots are full after {row.seen} tokens; {self._way_on}")

    def most_at_once(self, row: Row) -> int:
        """The tokens that a row takes before any is evicted, its keys are re-rotated or its window ends."""
        free = self.cache.free(row.index)
        return free if self.window is None else min(free, self.window - row.rot)

    def must_turn(self, row: Row, count: int) -> bool:
        """True where the row's keys have to be re-rotated before `count` more tokens."""
        return self.can_rotate and self.is_beyond(row, count)

    def is_beyond(self, row: Row, count: int) -> bool:
        """True where `count` more tokens go beyond the model's window."""
        return self.window is not None and row.rot + count > self.window

    @property
    def _ends_at(self) -> int | None:
        """The position at which a conversation ends whatever the slots hold."""
        return None if self.can_rotate else self.window

    @property
    def _way_on(self) -> str:
        """Advice about full slots."""
        evicting = "--on-full evict" if self.cache.policy.evicts else f"--kv-policy {DEFAULT_POLICY}"
        if self.cache.plan.capped_by == "window":
            return f"that is the model's window, so give {evicting}"
        return f"raise --kv-budget or give {evicting}"
