"""The rows of an engine, and the cache they lie in, which another takes the place of: as a row grows, or as told."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, overload

from kvlite.cache.cache import CacheSnapshot, SlotCache
from kvlite.cache.policy import Policy
from kvlite.cache.retention import Moved, Target, best_kept, keeps_all, kept_spans
from kvlite.engine.device_memory import PeakMemory
from kvlite.engine.feeder_maker import FeederMaker
from kvlite.engine.feeding import Feeder
from kvlite.engine.inputs import Spans
from kvlite.engine.kernels import in_a_line, parts_on_kernels, without_kernels
from kvlite.engine.limits import Limits
from kvlite.engine.prefixes import Prefixes
from kvlite.engine.row import Row
from kvlite.errors import NumericError, is_of_kernels
from kvlite.memory.counts import KVCounts
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import CachePlan, plan_for, stages
from kvlite.models.hybrid import StateSnapshot
from kvlite_kernels.trial.task import Part

Done = TypeVar("Done")

NO_NUMBERS = "numbers that are none"


@dataclass(frozen=True, slots=True)
class RowSnapshot:
    """A row as it was, on the host."""

    cache: CacheSnapshot
    state: StateSnapshot | None
    row: Row
    plan: CachePlan

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory."""
        return self.cache.num_bytes + (self.state.num_bytes if self.state is not None else 0)


class Rows(Sequence[Row]):
    """The rows of a cache that `maker` makes as `plan` says; a lone row goes on to the slots of `plan.then`.

    What is computed counts for `peak_memory`. Raises DoesNotFit or OutOfMemory where the cache cannot be allocated.
    """

    feeder: Feeder  # is not there where a cache could not be allocated
    prefixes: Prefixes

    def __init__(
        self,
        maker: FeederMaker,
        plan: CachePlan,
        policy: Policy,
        stored: SlotFormat,
        on_full: str | None,
        peak_memory: PeakMemory,
    ) -> None:
        self._maker, self._planned, self._peak_memory = maker, plan, peak_memory
        self._meanwhile: KVCounts | None = None  # while another cache takes the place of a row's
        self._state = maker.loaded.state
        self._open(plan, policy, stored, on_full)

    def _open(
        self, plan: CachePlan, policy: Policy, stored: SlotFormat, on_full: str | None, step: str | None = None
    ) -> None:
        """Take a cache as `maker` makes it in place of the one there is, and empty rows."""
        self._close()
        self._settings = policy, stored, on_full
        self.feeder = self._maker.make(plan, policy, stored, on_full, step)
        self.prefixes = Prefixes(self._state, self.cache)
        self._rows = [Row(index) for index in range(plan.rows)]

    def _close(self) -> None:
        """Free the cache, and what was made for it."""
        for name in ("feeder", "prefixes"):
            self.__dict__.pop(name, None)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self._rows[index]

    @property
    def cache(self) -> SlotCache:
        return self.feeder.cache

    @property
    def limits(self) -> Limits:
        return self.feeder.limits

    @property
    def plan(self) -> CachePlan:
        """The plan that the slots follow now."""
        return self.cache.plan

    @property
    def plans(self) -> tuple[CachePlan, ...]:
        """The plans that a row's slots follow as it grows, `plan` is the one of them that they do now."""
        return stages(self._planned)

    @property
    def policy(self) -> Policy:
        return self.cache.policy

    @property
    def on_full(self) -> str:
        """`evict`, `stop` or `error`: what happens when no slot is free."""
        return self.limits.on_full

    def check_pins(self, pins: tuple[tuple[int, int], ...]) -> None:
        """Raises BudgetTooSmall where a conversation that begins with ids pinned in these spans would be refused."""
        if (crowded := self.limits.crowding(Row(0), pins)) is not None:
            raise crowded

    def said(self, row: int) -> Sequence[int]:
        """The ids of a row's conversation, each at its position; the last may not be fed yet."""
        return self._rows[row].said

    def take_back(self, row: int) -> int | None:
        """Take out of a row the id that was drawn last and not fed, to be fed by a request; None if there is none."""
        return self._rows[row].take_back()

    def pin(self, row: int, spans: Sequence[tuple[int, int]], *, unpins: bool = False) -> None:
        """Evict nothing of what is left of these spans of a row's positions, or again.

        Raises BudgetTooSmall where that leaves no room.
        """
        held = self._rows[row]
        before = held.pins
        others = tuple(pin for pin in before if not any(start <= pin[0] < end for start, end in spans))
        left = [] if unpins else [part for span in spans for part in kept_spans(self.cache, row, span, held.seen)]
        held.pins = (*others, *left)
        if (crowded := self.limits.crowding(held, ())) is not None:
            held.pins = before
            raise crowded

    def pins(self, row: int) -> tuple[tuple[int, int], ...]:
        """The spans of a row's positions that are never evicted."""
        return self._rows[row].pins

    def check_change(self, plan: CachePlan, policy: Policy, fed_again: Spans | None = None) -> None:
        """Raises BudgetTooSmall where a cache of `plan` leaves no room beside what the row has pinned.

        `fed_again` are the pins of a row that will be fed anew.
        """
        row, pins = (self._rows[0], ()) if fed_again is None else (Row(0), fed_again)
        if (crowded := self.limits.crowding(row, pins, plan, policy)) is not None:
            raise crowded

    def moved(self, plan: CachePlan, policy: Policy) -> Moved | None:
        """A copy of the lone row for the cache of `plan`: the best of it by `policy`.

        None where that is not known, or where all of the row has room once it is fed again.
        """
        (row,), stage = self._rows, self._stage(plan)
        if stage is None:
            return None
        if policy.echoes:
            self.guarded(lambda: self.feeder.hear_all(row))
        return best_kept(self.cache, 0, Target(stage.head_slots, policy, row.seen, row.pins))

    def change_cache(self, plan: CachePlan, policy: Policy, on_full: str | None) -> bool:
        """Exchange the cache of a lone row for that of `plan`, which keeps what `moved` gives.

        False where that is nothing, and the row is empty then. Raises what allocating raises, and changes nothing.
        """
        assert len(self) == plan.rows == 1 and self._rows[0].job is None
        moved, stage = self.moved(plan, policy), self._stage(plan)
        self._exchange(stage or plan, policy, on_full, moved, self.snapshot(0))
        self._planned = plan
        if moved is None:
            self._rows = [Row(0)]
        else:
            self._rows[0].peak_bytes = 0
        return moved is not None

    def resize(self, plan: CachePlan) -> None:
        """Take a cache as `plan` says in place of the one there is, whose rows are lost.

        Raises DoesNotFit or OutOfMemory where it cannot be allocated; then there is none.
        """
        assert all(row.job is None for row in self._rows), "rows at work keep their slots"
        if plan != self._planned or "feeder" not in self.__dict__:
            self._open(plan, *self._settings)
            self._planned = plan

    def _stage(self, planned: CachePlan) -> CachePlan | None:
        """The plan for the lone row as it is: the first that keeps all that is left of it.

        Where none does, what it loses leaves no head with more slots than it has tokens; None where a cache of
        `planned` holds all that was ever fed.
        """
        seen, plans = self._rows[0].seen, stages(planned)
        first = plan_for(seen, plans)
        if self.counts(0).tokens_evicted == 0:
            return first
        later = plans[plans.index(first) :]
        found = next((plan for plan in later if keeps_all(self.cache, 0, plan.head_slots)), None)
        return found or (None if seen <= planned.fewest else plans[-1])

    def make_room(self, index: int, count: int) -> None:
        """Let a row that has the cache to itself have the slots that are best with `count` tokens more.

        Raises OutOfMemory where they cannot be allocated.
        """
        row, plans = self._rows[index], self.plans
        if len(plans) == 1:
            return
        plan = plan_for(row.seen + count, plans)
        if plan is self.plan or (row.seen and plans.index(plan) < plans.index(self.plan)):
            return
        with self._peak_memory.phase("prefill"):
            self.guarded(lambda: self.feeder.hear_all(row))
            peak_bytes = self.counts(index).peak_bytes
            moved = best_kept(self.cache, 0, Target(plan.head_slots, self.policy, row.seen, row.pins))
            self._exchange(plan, self.policy, self.on_full, moved)
            row.peak_bytes = peak_bytes
            if moved is None:
                self.guarded(lambda: self.feeder.read_anew(row, row.seen))

    def _exchange(
        self,
        plan: CachePlan,
        policy: Policy,
        on_full: str | None,
        moved: Moved | None,
        backup: RowSnapshot | None = None,
    ) -> None:
        """Put a cache of `plan` in place of that of a lone row, and into it what was `moved` of the row.

        Raises what allocating raises; the row has its cache back then, from the `backup` or fed anew.
        """
        (row,), before, step = self._rows, (self.plan, *self._settings), self.feeder.step
        self._meanwhile = self.counts(0)
        try:
            refused: BaseException | None = None
            try:
                self._open(plan, policy, before[2], on_full, None if policy != before[1] else step)
                if moved is not None:
                    self.cache.restore(0, moved.copy)
            except BaseException as error:
                refused = error
            if refused is not None:
                _let_go(refused)
                self._open(*before, step)
            self._rows = [row]
            if refused is not None:
                if backup is None:
                    self.feeder.read_anew(row, row.seen)
                else:
                    self.restore(0, backup)
                raise refused
        finally:
            self._meanwhile = None

    def reset(self, row: int) -> None:
        """Forget a row's conversation."""
        self.cache.reset(row)
        self._rows[row] = Row(row)
        if self._state is not None:
            self._state.reset()

    def snapshot(self, row: int) -> RowSnapshot:
        """Copy a row to the host: its live slots, constant state and counters."""
        held = self._rows[row]
        state = self._state.snapshot() if self._state is not None else None
        return RowSnapshot(self.cache.snapshot(row), state, held.copy(), self.plan)

    def restore(self, row: int, snapshot: RowSnapshot) -> None:
        """Continue a row from a snapshot, which stays usable. Its peak is the most that either ever held."""
        peak_bytes = max(self.counts(row).peak_bytes, snapshot.row.peak_bytes)
        if snapshot.plan != self.plan and snapshot.plan in self.plans:
            self.reset(row)
            self._exchange(snapshot.plan, self.policy, self.on_full, None)
        self.cache.restore(row, snapshot.cache)
        if self._state is not None:
            assert snapshot.state is not None
            self._state.restore(snapshot.state)
        self._rows[row] = replace(snapshot.row.copy(), index=row, peak_bytes=peak_bytes)

    def counts(self, row: int = 0) -> KVCounts:
        """Count what a row holds now; a row only grows until it is reset or restored."""
        if self._meanwhile is not None:
            return self._meanwhile
        held, state = self._rows[row], self._state
        peak_bytes = max(held.peak_bytes, self.cache.live_bytes(row))
        return self.cache.counts(row, held.seen, peak_bytes, 0 if state is None else state.num_bytes)

    def total_counts(self) -> KVCounts:
        """Count what all rows hold now; bytes and tokens are sums."""
        rows = [self.counts(row) for row in range(len(self))]
        per_cache = ("budget_bytes", "policy", "dtype")
        sums = {name: sum(getattr(row, name) for row in rows) for name in rows[0].__slots__ if name not in per_cache}
        return replace(rows[0], budget_bytes=self.plan.budget_bytes, **sums)

    def guarded(self, work: Callable[[], Done], is_right: Callable[[Done], bool] | None = None) -> Done:
        """Do `work`; where Triton's kernels fail at it, torch reads all rows anew and does it again.

        What is not right in torch either is no fault of the kernels. Raises NumericError where the device does not
        answer any more.
        """
        held, error, loaded = [row.seen for row in self._rows], "", self._maker.loaded
        try:
            done = work()
            if is_right is None or is_right(done):
                return done
        except Exception as raised:
            if not is_of_kernels(raised) or not parts_on_kernels(loaded, self.cache):
                raise
            error = in_a_line(raised)
        parts = parts_on_kernels(loaded, self.cache)
        if not parts:
            return done
        if error:
            self._condemn(parts, error)
            return self._in_torch(held, error, work)
        done = self._in_torch(held, NO_NUMBERS, work)
        if is_right is None or is_right(done):
            self._condemn(parts, NO_NUMBERS)
        else:
            self._maker.warn("the model computed no numbers on Triton's kernels, and none in torch, which goes on")
        return done

    def _condemn(self, parts: Sequence[Part], why: str) -> None:
        self._maker.warn(f"Triton's kernels failed in mid-answer ({why}); torch goes on, and reads anew what was said")
        self._maker.kernels.condemn(parts, why)

    def _in_torch(self, held: Sequence[int], why: str, work: Callable[[], Done]) -> Done:
        """Do `work` once torch has read the first `held` ids of every row: kernels that failed left anything there."""
        self._maker.kernels.set_aside()
        without_kernels(self._maker.loaded)
        rows = self._rows
        try:
            self._open(self.plan, *self._settings)
            self._rows = rows
            for row, count in zip(rows, held, strict=True):
                self.feeder.read_anew(row, count)
            return work()
        except Exception as error:
            if not is_of_kernels(error):
                raise
            raise NumericError(
                f"Triton's kernels failed and took the device along ({why}); run it again with --kernels torch"
            ) from error


def _let_go(error: BaseException | None) -> None:
    """Free what an error and those behind it hold: the tensors that were allocated before one was refused."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
