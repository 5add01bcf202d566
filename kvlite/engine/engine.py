"""The one generation loop: ids in, tokens out. Chat is a batch of one. Knows nothing of text or screens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from kvlite.cache.cache import CacheSnapshot, SlotCache
from kvlite.cache.policy import Policy
from kvlite.cache.retention import Moved, Target, best_kept, keeps_all, kept_spans
from kvlite.engine.decode_graphs import WORTH_IT, DecodeGraphs, GraphRecorder
from kvlite.engine.decoding import Decoder, Drawn
from kvlite.engine.device_memory import PeakMemory, allocating
from kvlite.engine.feeding import CAPTURED, Feeder
from kvlite.engine.inputs import Spans
from kvlite.engine.kernels import KernelChoice, in_a_line, is_of_kernels, without_kernels
from kvlite.engine.limits import Limits
from kvlite.engine.prefixes import PrefixCopy, Prefixes
from kvlite.engine.request import Completion, FinishReason, Logprobs, Request, Timing, Token
from kvlite.engine.row import Row
from kvlite.engine.sampling import INVALID
from kvlite.engine.scheduler import Feed, next_feed
from kvlite.engine.speculation import Speculation
from kvlite.errors import ContextFull, KvliteError, NumericError, UsageError
from kvlite.memory.counts import KVCounts
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import CachePlan, plan_for, stages
from kvlite.models.hybrid import StateSnapshot
from kvlite.models.loaded import LoadedModel
from kvlite.options import Speculate

Done = TypeVar("Done")


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


class Engine:
    """Feeds requests through `loaded` with a cache of `plan.rows` rows that never exceeds `plan.budget_bytes`.

    A lone row goes from the slots of `plan` to those of `plan.then` as it grows.
    `stored` is what a slot holds, as planned. `on_full` says what happens when no slot is free: `evict`, `stop` the
    answer, or make it an `error`; None leaves it to the policy. `kernels` is one of `kvlite_kernels.choice.KERNELS`, or
    chooses between them; where Triton's fail in mid-answer, what was said is read anew in torch, and `warn` told.
    Decode steps are replayed from what `recorder` makes of them where that proves exact and, unless they
    `must_capture`, faster. Else, or where it fails in mid-answer, steps are eager and `step` says why; `warn` does too,
    unless nobody asked. For a row that decodes alone tokens are drafted as `speculate` says, and verified. Raises
    UsageError where a choice cannot be honoured, DoesNotFit or OutOfMemory where the cache cannot be allocated.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        plan: CachePlan,
        policy: Policy,
        stored: SlotFormat,
        on_full: str | None = None,
        kernels: str | KernelChoice = "auto",
        recorder: GraphRecorder | None = None,
        must_capture: bool = False,
        warn: Callable[[str], None] = lambda text: None,
        speculate: Speculate = "off",
    ) -> None:
        if loaded.state is not None and plan.rows > 1:
            raise UsageError(f"{loaded.shape.family} models carry state and run one row at a time, not {plan.rows}")
        self.loaded = loaded
        self.peak_memory = PeakMemory(loaded.device)
        self._warn_of, self._warned = warn, set[str]()
        self._meanwhile: KVCounts | None = None  # while another cache takes the place of a row's
        self.kernels = KernelChoice(kernels) if isinstance(kernels, str) else kernels
        self._recorder, self._must_capture = recorder, must_capture
        self._planned = plan
        obstacle = "" if loaded.state is None else f"{loaded.shape.family} models carry state that cannot go back"
        self.decoder = Decoder(Speculation(speculate, obstacle), self.peak_memory, loaded.device)
        self._open(plan, policy, stored, on_full)
        if self.cache.backend.name != "torch":
            obstacle = obstacle or "only torch attends to several tokens as to each alone"
        if obstacle and isinstance(speculate, int):
            warn(f"--speculate {speculate}: tokens come one by one: {obstacle}")

    def _open(
        self, plan: CachePlan, policy: Policy, stored: SlotFormat, on_full: str | None, step: str | None = None
    ) -> None:
        """Allocate the cache of `plan`, whose rows are empty.

        `step` is the way decode steps went in the cache before, and go on; None: it is to be found out.
        """
        loaded = self.loaded
        self.plan, self._stored = plan, stored
        self.policy = policy
        self.on_full = policy.when_full(on_full)
        kernels = self.kernels.name_for(stored, policy)
        with allocating():
            self.cache = SlotCache(loaded.shape, plan, policy, stored, loaded.device, kernels, loaded.dtype)
        for index, layer in self.cache.layers.items():
            layer.rotation = (loaded.rotations or {}).get(index)
        is_whole = plan.slots == plan.most_slots  # nothing is evicted inside the model's window
        echoes = policy.echoes and self.on_full == "evict" and not is_whole
        rotates = loaded.rotations is not None
        self._limits = Limits(self.cache, loaded.shape.vocab, loaded.window, rotates, self.on_full)
        self._feeder = Feeder(loaded, self.cache, self._limits, echoes=echoes, warn=self._warn)
        self._rows = [Row(index) for index in range(plan.rows)]
        slot_bytes = -(-plan.reserved_bytes // (plan.rows * (plan.slots + 1)))
        self._prefixes = Prefixes(
            plan.budget_bytes - plan.reserved_bytes, slot_bytes, min(plan.fewest, self.cache.room(0))
        )
        if self._recorder is None:
            return
        if step is None:
            self._feeder.capture(self._recorder, least=None if self._must_capture else WORTH_IT)
        elif step == CAPTURED:
            self._feeder.capture(self._recorder, least=0.0)
        else:
            self._feeder.step = step

    def _warn(self, text: str) -> None:
        """Warn once."""
        if text not in self._warned:
            self._warned.add(text)
            self._warn_of(text)

    @property
    def rows(self) -> int:
        return self.plan.rows

    @property
    def plans(self) -> tuple[CachePlan, ...]:
        """The plans that a row's slots follow as it grows, `plan` is the one of them that they do now."""
        return stages(self._planned)

    @property
    def step(self) -> str:
        """The way decode steps run: `captured`, or `eager` and, where capturing was asked for, the obstacle."""
        return self._feeder.step

    @property
    def graphs(self) -> DecodeGraphs | None:
        """The graphs that decode steps are replayed from; None where they are eager."""
        return self._feeder.graphs

    @property
    def speculation(self) -> Speculation:
        """The way tokens are drafted."""
        return self.decoder.speculation

    def run(self, requests: Iterable[Request | None]) -> Iterator[Token | Completion]:
        """Serve requests as rows come free, yielding each one's tokens and then its Completion; they interleave.

        A source that has nothing ready yields None: the rows at work go on, and it is asked again after a step. A
        request that cannot be served ends with a Completion that carries the error. Closing the iterator stops.
        """
        waiting = iter(requests)
        exhausted, feed = False, None
        try:
            while True:
                while not exhausted and any(row.job is None for row in self._rows):
                    try:
                        request = next(waiting)
                    except StopIteration:
                        exhausted = True
                        break
                    if request is None:
                        break
                    yield from self._admit(request)
                yield from self._ended()
                self._share()
                self._hear_all()
                feed = next_feed(self._rows, feed, may_share=self._feeder.may_share)
                if feed is not None:
                    self.make_room(feed.rows.start, feed.counts[0])
                    yield from self._advance(feed)
                elif exhausted:
                    return
        finally:
            for row in self._rows:
                row.job = None

    def score(self, ids: Sequence[tuple[int, ...]], last: int | None = None) -> torch.Tensor:
        """Feed the first rows the next ids of texts that are given, and give the logits behind each id [n, T, V].

        With `last` only those behind so many of the last ids are computed. Shorter pieces stand on the right; a row
        without ids is left as it is. A cache that evicts takes at most `plan.chunk` ids each. Raises ContextFull where
        one that does not is full.
        """
        assert all(row.job is None for row in self._rows), "scoring and answering take turns"
        if self.on_full != "evict" and any(len(piece) > self.cache.room(row) for row, piece in enumerate(ids)):
            raise ContextFull(
                f"a text is longer than the {self.plan.slots} slots, and policy {self.policy.name} is full"
            )
        assert self.on_full != "evict" or max(map(len, ids)) <= self.plan.chunk, "re-rotation leaves room for one chunk"
        width = max(map(len, ids))
        with self.peak_memory.phase("prefill"):
            self.make_room(0, len(ids[0]))
            for row, piece in zip(self._rows, ids, strict=False):
                if self._feeder.echoes and piece:
                    self._feeder.hear(row, ends=width > 1)
            for row, piece in zip(self._rows[: len(ids)], ids, strict=True):
                row.said.extend(piece)
            return self._feeder.forward(Feed(slice(0, len(ids)), tuple(ids)), self._rows[: len(ids)], last or width)

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request before its next token; what it has answered stays part of the conversation."""
        for row in self._rows:
            job = row.job  # another thread may end it meanwhile
            if job is not None and job.request.id == request_id:
                job.ending = reason

    def check_pins(self, pins: tuple[tuple[int, int], ...]) -> None:
        """Raises BudgetTooSmall where a conversation that begins with ids pinned in these spans would be refused."""
        if (crowded := self._limits.crowding(Row(0), pins)) is not None:
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
        if (crowded := self._limits.crowding(held, ())) is not None:
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
        if (crowded := self._limits.crowding(row, pins, plan, policy)) is not None:
            raise crowded

    def moved(self, plan: CachePlan, policy: Policy) -> Moved | None:
        """A copy of the lone row for the cache of `plan`: the best of it by `policy`.

        None where that is not known, or where all of the row has room once it is fed again.
        """
        (row,), stage = self._rows, self._stage(plan)
        if stage is None:
            return None
        return best_kept(self.cache, 0, Target(stage.head_slots, policy, row.seen, row.pins))

    def change_cache(self, plan: CachePlan, policy: Policy, on_full: str | None) -> bool:
        """Exchange the cache of a lone row for that of `plan`, which keeps what `moved` gives.

        False where that is nothing, and the row is empty then. Raises what allocating raises, and changes nothing.
        """
        assert self.rows == plan.rows == 1 and self._rows[0].job is None
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
        if plan != self._planned or "cache" not in self.__dict__:
            self._close()
            self._open(plan, self.policy, self._stored, self.on_full)
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
        with self.peak_memory.phase("prefill"):
            if row.seen and self._feeder.echoes:
                self._guarded(lambda: self._feeder.hear(row, ends=True))
            peak_bytes = self.counts(index).peak_bytes
            moved = best_kept(self.cache, 0, Target(plan.head_slots, self.policy, row.seen, row.pins))
            self._exchange(plan, self.policy, self.on_full, moved)
            row.peak_bytes = peak_bytes
            if moved is None:
                self._guarded(lambda: self._feeder.read_anew(row, row.seen))

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
        (row,), before, step = self._rows, (self.plan, self.policy, self.cache.stored, self.on_full), self.step
        self._meanwhile = self.counts(0)
        try:
            self._close()
            try:
                self._open(plan, policy, before[2], on_full, None if policy != before[1] else step)
                if moved is not None:
                    self.cache.restore(0, moved.copy)
            except BaseException:
                self._close()
                self._open(*before, step)
                self._rows = [row]
                if backup is None:
                    self._feeder.read_anew(row, row.seen)
                else:
                    self.restore(0, backup)
                raise
            self._rows = [row]
        finally:
            self._meanwhile = None

    def _close(self) -> None:
        """Free the cache, and what was made for it."""
        for name in ("cache", "_limits", "_feeder"):  # none is there where it could not be allocated
            self.__dict__.pop(name, None)

    def reset(self, row: int) -> None:
        """Forget a row's conversation."""
        self.cache.reset(row)
        self._rows[row] = Row(row)
        if self.loaded.state is not None:
            self.loaded.state.reset()

    def snapshot(self, row: int) -> RowSnapshot:
        """Copy a row to the host: its live slots, constant state and counters."""
        held = self._rows[row]
        state = self.loaded.state.snapshot() if self.loaded.state is not None else None
        return RowSnapshot(self.cache.snapshot(row), state, held.copy(), self.plan)

    def restore(self, row: int, snapshot: RowSnapshot) -> None:
        """Continue a row from a snapshot, which stays usable. Its peak is the most that either ever held."""
        peak_bytes = max(self.counts(row).peak_bytes, snapshot.row.peak_bytes)
        if snapshot.plan != self.plan and snapshot.plan in self.plans:
            self.reset(row)
            self._exchange(snapshot.plan, self.policy, self.on_full, None)
        self.cache.restore(row, snapshot.cache)
        if self.loaded.state is not None:
            assert snapshot.state is not None
            self.loaded.state.restore(snapshot.state)
        self._rows[row] = replace(snapshot.row.copy(), index=row, peak_bytes=peak_bytes)

    def counts(self, row: int = 0) -> KVCounts:
        """Count what a row holds now; a row only grows until it is reset or restored."""
        if self._meanwhile is not None:
            return self._meanwhile
        held, state = self._rows[row], self.loaded.state
        peak_bytes = max(held.peak_bytes, self.cache.live_bytes(row))
        return self.cache.counts(row, held.seen, peak_bytes, 0 if state is None else state.num_bytes)

    def total_counts(self) -> KVCounts:
        """Count what all rows hold now; bytes and tokens are sums."""
        rows = [self.counts(row) for row in range(self.rows)]
        per_cache = ("budget_bytes", "policy", "dtype")
        sums = {name: sum(getattr(row, name) for row in rows) for name in rows[0].__slots__ if name not in per_cache}
        return replace(rows[0], budget_bytes=self.plan.budget_bytes, **sums)

    def _admit(self, request: Request) -> Iterator[Completion]:
        if request.row is None:
            index = next(row.index for row in self._rows if row.job is None)
            self.reset(index)
        elif self._rows[request.row].job is None:
            index = request.row
        else:
            raise UsageError(f"row {request.row} is busy; wait for its answer")
        row = self._rows[index]
        error, counts = self._limits.refusal(row, request), self.counts(row.index)
        if error is None:
            self.make_room(index, len(request.ids) + (row.unfed is not None))
            evicts = row.needs(request) > min(self.plan.fewest, row.seen + self.cache.room(index))
            is_forgotten = request.row is None and not request.prefixes and not evicts
            echoes = self._feeder.echoes and not is_forgotten
            chunk = self.plan.chunk if evicts or echoes else self.plan.most_chunk
            row.begin(request, chunk, counts.tokens_evicted, echoes=echoes)
            if row.job is not None and request.row is None:
                ends = request.prefixes
                if evicts or echoes:  # where chunks end decides what goes
                    ends = tuple(dict.fromkeys(end - end % chunk for end in ends if end >= chunk))
                row.job.marks = self._prefixes.marks(ends, len(request.ids))
                self._prefixes.start(row, self._rows, self._put)
        else:
            yield Completion(
                request.id, (), FinishReason.CANCELLED, len(request.ids), 0, counts, Timing(0.0, 0.0, 0.0), error
            )

    def _share(self) -> None:
        """Copy the rows that have come to the end of a prefix, and let those go on that wait for one."""
        for row in self._rows:
            if row.job is not None and row.job.marks and row.seen == row.job.marks[0]:
                state = self.loaded.state.snapshot() if self.loaded.state is not None else None
                self._prefixes.keep(row, PrefixCopy(self.cache.snapshot(row.index), state))
        for row in self._rows:
            if row.job is not None and row.job.waits:
                self._prefixes.start(row, self._rows, self._put)

    def _put(self, row: Row, copied: PrefixCopy) -> None:
        """Put the copy of a prefix into a row."""
        self.cache.restore(row.index, copied.cache)
        if self.loaded.state is not None:
            assert copied.state is not None
            self.loaded.state.restore(copied.state)

    def _ended(self) -> Iterator[Completion]:
        """Complete the requests that were cancelled, and those that have no room for another token."""
        for row in self._rows:
            if row.job is None:
                continue
            if row.job.ending is not None:
                yield self._complete(row, row.job.ending)
            elif row.unfed is not None and (end := self._limits.end(row)) is not None:
                error = end if self.on_full == "error" else None
                yield replace(self._complete(row, FinishReason.LENGTH, error), cut_short=str(end))

    def _advance(self, feed: Feed) -> Iterator[Token | Completion]:
        """Make one forward pass; then a token for every row whose prompt is through."""
        rows = self._rows[feed.rows]
        if feed.beside is not None:
            rows = [*rows, *self._rows[feed.beside.rows]]
        if draft := self.decoder.draft(self._feeder, feed, rows):
            with closing(self.decoder.verified(self._feeder, rows[0], draft)) as verified:
                for token, probable in verified:
                    yield from self._take(rows[0], token, probable)
            return
        for i, token, probable in self._drawn(feed, rows):
            yield from self._take(rows[i], token, probable)

    def _drawn(self, feed: Feed, rows: Sequence[Row]) -> list[Drawn]:
        """Draw with the kernels that there are; where Triton's fail, once more with torch."""
        if self.cache.backend.name == "torch":
            return self.decoder.drawn(self._feeder, feed, rows)
        held = [row.seen for row in self._rows]
        try:
            drawn = self.decoder.drawn(self._feeder, feed, rows)
            if all(token != INVALID for _, token, _ in drawn):
                return drawn
            why = "numbers that are none"
        except Exception as error:
            if not is_of_kernels(error):
                raise
            why = in_a_line(error)
        return self._in_torch(held, why, lambda: self.decoder.drawn(self._feeder, feed, rows))

    def _in_torch(self, held: Sequence[int], why: str, work: Callable[[], Done]) -> Done:
        """Do `work` once torch has read the first `held` ids of every row anew.

        Nobody knows what kernels that failed left there. Raises NumericError where the device does not answer any more.
        """
        self._warn(f"Triton's kernels failed in mid-answer ({why}); torch goes on, and reads anew what was said")
        self.kernels.condemn(self.cache.stored, self.policy, why)
        without_kernels(self.loaded)
        rows, before = self._rows, (self.plan, self.policy, self.cache.stored, self.on_full)
        try:
            self._close()
            self._open(*before)
            self._rows = rows
            for row, count in zip(rows, held, strict=True):
                self._feeder.read_anew(row, count)
            return work()
        except Exception as error:
            if not is_of_kernels(error):
                raise
            raise NumericError(
                f"Triton's kernels failed and took the device along ({why}); run it again with --kernels torch"
            ) from error

    def _hear_all(self) -> None:
        """Let the policy hear what came to rows at work, where that is due."""

        def hear() -> None:
            for row in self._rows:
                if row.job is not None and row.job.echoes:
                    self._feeder.hear(row, ends=row.next_chunk > 0)

        if self._feeder.echoes:
            self._guarded(hear)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do `work`; where Triton's kernels fail at it, torch reads all rows anew instead."""
        held = [row.seen for row in self._rows]
        try:
            work()
        except Exception as error:
            if self.cache.backend.name == "torch" or not is_of_kernels(error):
                raise
            self._in_torch(held, in_a_line(error), lambda: None)

    def _take(self, row: Row, token: int, known: Logprobs | None) -> Iterator[Token | Completion]:
        """Record a sampled token; a stop id or the last allowed token ends the request."""
        job = row.job
        assert job is not None
        job.first_token_at = job.first_token_at or time.monotonic()
        if token == INVALID:
            error = NumericError("the model computed no numbers; give --dtype float32 or bfloat16")
            yield self._complete(row, FinishReason.CANCELLED, error)
            return
        if token in job.request.stop_ids:
            yield self._complete(row, FinishReason.STOP)
            return
        row.take(token, known)
        yield Token(job.request.id, len(job.answer) - 1, token)
        if row.job is not job or job.ending is not None:
            return
        if job.guide is not None and job.guide.is_over:
            yield self._complete(row, FinishReason.STOP)
        elif len(job.answer) == job.request.max_tokens:
            yield self._complete(row, FinishReason.LENGTH)

    def _complete(self, row: Row, reason: FinishReason, error: KvliteError | None = None) -> Completion:
        job = row.job
        assert job is not None
        row.job = None
        counts = self.counts(row.index)
        return Completion(
            request_id=job.request.id,
            ids=tuple(job.answer),
            finish_reason=reason,
            prompt_tokens=len(job.request.ids),
            evicted=counts.tokens_evicted - job.evicted_before,
            kv=counts,
            timing=job.timing(),
            error=error or (None if job.guide is None else job.guide.error),
            cached_tokens=job.cached,
            logprobs=tuple(job.logprobs),
            drafted=job.drafted,
            accepted=job.accepted,
        )
