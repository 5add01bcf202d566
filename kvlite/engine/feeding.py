"""Forward passes: ids of rows go through the model into the cache, and logits come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from kvlite.cache.cache import SlotCache
from kvlite.cache.step import Step
from kvlite.engine.decode_graphs import DecodeGraphs, GraphRecorder, NotCapturable, try_replay
from kvlite.engine.device_memory import allocating
from kvlite.engine.inputs import inputs
from kvlite.engine.kernels import parts_on_kernels
from kvlite.engine.limits import Limits
from kvlite.engine.row import Row
from kvlite.engine.scheduler import Feed, unheard
from kvlite.errors import OutOfMemory
from kvlite.memory.plan import chunk_tokens
from kvlite.models.loaded import LoadedModel
from kvlite.models.probe import dry_cache

CAPTURED = "captured"


class Feeder:
    """Feeds rows through `loaded`, whose keys and values go into `cache`, at most `chunk` ids each where it evicts.

    The chunk is that of the cache's plan. With `echoes` its policy hears all ids again, or, where it `hears_late`,
    those that it must know before a slot is needed. Decode steps are eager until they are captured; `warn` is told
    where that does not work.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: SlotCache,
        limits: Limits,
        *,
        echoes: bool,
        hears_late: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.loaded, self.cache, self.limits, self.chunk = loaded, cache, limits, cache.plan.chunk
        self._heard_at_once = min(self.chunk, chunk_tokens(cache.plan.fewest))  # few: until then none of them goes
        self.echoes, self._hears_late = echoes, hears_late
        self.step = "eager"
        """The way decode steps run: `captured`, or `eager` and, where capturing was asked for, the obstacle."""
        self.graphs: DecodeGraphs | None = None
        self._warn = warn

    def forward(self, feed: Feed, rows: Sequence[Row], last: int = 1) -> torch.Tensor:
        """Feed ids to the rows of `feed` and give the logits of the `last` positions [n, last, V].

        The rows of a step beside it come after its own; then `last` is 1.
        """
        if feed.beside is not None:
            return self._forward_both(feed, feed.beside, rows)
        logits = None
        for row, count in zip(rows, feed.counts, strict=True):
            if count and self.limits.must_turn(row, count):
                row.rot = self.cache.rerotate(row.index)
        if feed.decodes and self.graphs is not None:
            try:
                logits = self.graphs.step(feed, rows)[:, None]
            except NotCapturable as error:
                self._give_up(error)
        if logits is None:
            ids, step = self._begin(feed, rows)
            logits = self.loaded.forward(ids, self.cache, step, last)
        self._count(feed, rows)
        return logits

    def may_share(self, row: Row, count: int) -> bool:
        """True where `count` tokens evict none of the row's and move no key, and no state needs rows one by one."""
        return self.loaded.state is None and count <= self.limits.most_at_once(row)

    def _forward_both(self, feed: Feed, beside: Feed, rows: Sequence[Row]) -> torch.Tensor:
        """Feed the rows of two feeds in one pass; of none is anything evicted, so that the order of the two is free."""
        own = len(feed.ids)
        fed = (feed, rows[:own]), (beside, rows[own:])
        logits = self.loaded.forward_packed([self._begin(*one) for one in fed], self.cache)
        for one in fed:
            self._count(*one)
        return logits[:, None]

    def _begin(self, feed: Feed, rows: Sequence[Row]) -> tuple[torch.Tensor, Step]:
        """The ids of a feed on the device, and the step that takes them to the cache."""
        given = inputs(feed, rows, self.loaded.device)
        to_come = [row.to_come for row in rows]
        echoes = [self._echoes(feed, row, count) for row, count in zip(rows, feed.counts, strict=True)]
        step = self.cache.begin(feed.rows, given.pos, given.rot, feed.counts, given.pins, to_come, echoes=echoes)
        return given.ids, step

    def _echoes(self, feed: Feed, row: Row, count: int) -> bool:
        """True where the policy hears `count` ids of a row in the pass that feeds them: a chunk, by itself or not."""
        is_wanted = self.echoes and not feed.decodes and count > 1 and (row.job is None or row.job.echoes)
        return is_wanted and row.echoed == row.seen and not self._can_wait(row, count)

    def _count(self, feed: Feed, rows: Sequence[Row]) -> None:
        """Note in rows what came to them."""
        for row, count in zip(rows, feed.counts, strict=True):
            echoes = self._echoes(feed, row, count)
            row.feed(count)
            if echoes:
                row.echoed = row.seen

    def hear_all(self, row: Row) -> None:
        """Let the policy hear all that it has not heard of a row, which is fed that again; it leaves no key."""
        while self.echoes and (feed := unheard(row, self._heard_at_once, ends=True)) is not None:
            self._hear(row, feed)

    def hear_before(self, row: Row, count: int) -> None:
        """Let the policy hear what is due before `count` ids come: what came one by one, by the chunk or to its end."""
        while (
            self.echoes
            and not self._can_wait(row, count)
            and (feed := unheard(row, self._heard_at_once, ends=count > 1)) is not None
        ):
            self._hear(row, feed)

    def until_heard(self, row: Row) -> int:
        """Count the tokens that may come one by one before some are due to be heard."""
        waiting = row.seen - row.echoed
        until = self._heard_at_once - waiting
        if self._hears_late:
            until = max(until, (self.limits.most_at_once(row) - waiting + 1) // 2)
        return until

    def _can_wait(self, row: Row, count: int) -> bool:
        """True where after `count` ids more there is room for as many as the policy has not heard then.

        So the work is spread over what comes until slots are full, and there is none before they are half full.
        """
        return self._hears_late and row.seen - row.echoed + count <= self.limits.most_at_once(row)

    def _hear(self, row: Row, feed: Feed) -> None:
        """Feed a row a piece again; a model's constant state is put back."""
        given, state = inputs(feed, [row], self.loaded.device), self.loaded.state
        held = None if state is None else state.snapshot()
        step = self.cache.again(feed.rows, given.pos, given.rot, row.seen - row.echoed)
        self.loaded.forward(given.ids, self.cache, step, last=0)
        if state is not None and held is not None:
            state.restore(held)
        row.echoed += feed.width

    def read_anew(self, row: Row, count: int) -> None:
        """Forget what a row has, and feed it the first `count` ids of its conversation."""
        self.cache.reset(row.index)
        unfed, row.seen, row.rot, row.echoed = row.unfed, 0, 0, 0
        if self.loaded.state is not None:
            self.loaded.state.reset()
        for start in range(0, count, self.chunk):
            piece = tuple(row.said[start : min(start + self.chunk, count)])
            self.forward(Feed(slice(row.index, row.index + 1), (piece,)), [row])
        row.unfed = unfed

    def capture(self, recorder: GraphRecorder, least: float | None) -> None:
        """Let decode steps be replayed, once those of a small cache were found equal to eager ones, and faster.

        `least` is how many times as fast they must be; None where they were asked for. What was found before of other
        caches of the same kind holds.
        """
        cache = self.cache
        heads = "apart" if any(len(layer.parts) > 1 for layer in cache.layers.values()) else "together"
        kind = str(cache.policy), cache.stored.name, heads, *map(str, parts_on_kernels(self.loaded, cache))
        try:
            if why := recorder.found.get(kind) or recorder.failed:
                raise NotCapturable(why)
            with allocating():
                graphs = DecodeGraphs(self.loaded, cache, recorder)
            if kind not in recorder.found:
                self._prove(recorder, least)
        except OutOfMemory as error:  # another cache may leave more
            if least is None:
                raise
            self._give_up(error, is_missed=False)
        except NotCapturable as error:
            recorder.found = {**recorder.found, kind: str(error)}
            self._give_up(error, is_missed=least is None)
        else:
            recorder.found = {**recorder.found, kind: ""}
            self.step, self.graphs = CAPTURED, graphs

    def _prove(self, recorder: GraphRecorder, least: float | None) -> None:
        """Replay steps of a small cache beside eager ones. Raises NotCapturable where they differ or are too slow."""
        cache = self.cache
        with allocating():
            small = partial(dry_cache, self.loaded, cache.policy.min_slots() + 8, cache.stored, cache.policy)
            caches = [small(cache.backend.name, lambda slots: cache.plan.head_slots) for _ in range(2)]
            gain = try_replay(self.loaded, caches, recorder)
        if least is not None and gain < least:
            raise NotCapturable(f"a replayed step takes {1 / gain:.2f} times as long as an eager one")

    def _give_up(self, why: NotCapturable | OutOfMemory, is_missed: bool = True) -> None:
        """Go on without graphs, which must not be recorded again once that failed."""
        reason = f"{self.loaded.shape.family} under policy {self.cache.policy.name} is not captured: {why}"
        self.step, self.graphs = f"eager: {reason}", None
        if is_missed:
            self._warn(f"--capture: decode steps run eagerly: {reason}")
